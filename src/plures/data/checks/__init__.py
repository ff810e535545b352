"""Checking data: broken images, descriptions, plots."""
