# A model behind HTTP, from the wheel (docs/serving.md, "In a container"):
#     python -m build --wheel && docker build -t plures .
#     docker run -p 8000:8000 -v "$PWD/runs/first:/run/model:ro" plures
FROM python:3.12-slim

# Options of pip, such as an index that has torch without CUDA; none by default
ARG PIP_OPTIONS=""

COPY dist/plures-*.whl /wheels/
# hadolint ignore=DL3013,SC2086
RUN set -- /wheels/plures-*.whl \
    && pip install --no-cache-dir $PIP_OPTIONS "$1[web]" \
    && useradd --create-home --uid 10001 plures

USER 10001
ENV PLURES_CACHE=/home/plures/cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["plures", "serve", "/run/model", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--allow-host", "localhost"]
