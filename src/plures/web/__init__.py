"""The pages that plures serves: reviewing tags, and serving a model; everything they need is inside the package."""
