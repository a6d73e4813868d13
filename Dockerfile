# The page and the API on a CPU:
#   docker build -t fusioner .            (--build-arg EXTRAS=serve,train,ray adds training, GPUs and Ray)
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp fusioner
FROM python:3.12-slim
WORKDIR /opt/fusioner
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

ARG EXTRAS="serve"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY samples ./samples
RUN pip install ".[$EXTRAS]" && rm -r src samples

RUN useradd --create-home fusioner
USER fusioner
EXPOSE 8000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["fusioner", "serve", "--host", "0.0.0.0", "--allowed-host", "localhost"]
