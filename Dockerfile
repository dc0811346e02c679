# The default model, ready to serve on a CPU:
#   docker build --tag attend .
#   docker run --publish 127.0.0.1:8000:8000 attend
# With ONNX Runtime's CUDA build instead: --build-arg EXTRA=gpu, and docker run --gpus all.

# cpu or gpu: the optional dependency that the service is installed with.
ARG EXTRA=cpu

# The minor version that the tests run on; its security updates come with the tag.
FROM python:3.11-slim-bookworm AS base

FROM base AS source
# A mirror, or an index that has CPU-only builds of torch: they spare the export some gigabytes of unused CUDA.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY model model
COPY service service

# Export needs torch; what it installs stays in this stage. The service runs as another user, so the bundle is made
# readable for all, and writable for none but root.
FROM source AS export
ARG PRECISION=w8a8
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt '/src[cpu,export]'
RUN attend export default --out /bundle --precision "${PRECISION}" && chmod -R a+rX /bundle

FROM source AS install
ARG EXTRA
RUN --mount=type=cache,target=/root/.cache/pip pip install --constraint constraints.txt "/src[${EXTRA}]"
# Serving runs without torch: a dependency that drags it in must fail here, not make the image four times as large.
RUN python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"

FROM base AS serve
RUN useradd --uid 10001 --create-home attend
COPY --from=install /opt/venv /opt/venv
COPY --from=export /bundle /bundle
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# By number: Kubernetes must see that it is not root.
USER 10001
WORKDIR /home/attend
EXPOSE 8000
# The image has no curl. Proxies are off, because a proxy set for the container cannot reach the container's loopback.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", \
    "from urllib.request import *; build_opener(ProxyHandler({})).open('http://127.0.0.1:8000/health', timeout=4)"]
# What asks the service to finish its running requests and leave.
STOPSIGNAL SIGTERM
ENTRYPOINT ["attend", "serve", "--host", "0.0.0.0", "--bundle", "/bundle"]
