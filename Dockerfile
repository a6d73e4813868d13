# The page and the API on a CPU:
#   docker build -t fusioner .            (--build-arg TORCH_INDEX=URL takes torch from another package index)
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp fusioner
FROM python:3.12-slim
WORKDIR /opt/fusioner
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first, in a layer of its own: it is most of the image and rarely changes.
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $(grep '^torch==' constraints.txt)

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt '.[serve]' && rm -r src

RUN useradd --create-home fusioner
USER fusioner
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["fusioner", "serve", "--host", "0.0.0.0", "--allowed-host", "localhost"]
