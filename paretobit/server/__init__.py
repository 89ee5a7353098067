"""An OpenAI-compatible server for packed models: the engine that batches, the API, and the page.

The only package that imports starlette, uvicorn, pydantic, prometheus_client and llguidance (the extra `serve`).
"""
