# One image for every process: worker (the default), beat, API, Flower, commands, and the sandbox.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/perennial
WORKDIR /src
# The lock first: as long as it stays, a change in the sources does not install everything anew.
COPY requirements-run.lock ./
RUN /opt/perennial/bin/python -m pip install --require-hashes -r requirements-run.lock
COPY . ./
RUN /opt/perennial/bin/python -m pip install --no-deps --no-build-isolation . \
    && /opt/perennial/bin/python -m pip uninstall --yes setuptools pip

FROM python:${PYTHON}-slim
# PYTHONUNBUFFERED: a container's last words must not stay in a buffer.
ENV PATH=/opt/perennial/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SPOOL_DIR=/var/lib/perennial/spool MEDIA_DIR=/var/lib/perennial/media
# The folder of a volume is made here, or the volume would be root's.
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin perennial \
    && install --directory --owner perennial --group nogroup \
        /var/lib/perennial /var/lib/perennial/media
COPY --from=build /opt/perennial /opt/perennial
WORKDIR /app
COPY flowerconfig.py LICENSE ./
USER perennial
# Dead letters that Redis would not take wait here, and videos that are not delivered yet; everything
# else is in Redis and PostgreSQL.
VOLUME /var/lib/perennial
# SIGTERM lets a worker finish what it has begun.
STOPSIGNAL SIGTERM
# A worker's own answer to a ping, by way of the broker. Other processes have another check.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "celery -A tasks inspect ping --timeout 10 --destination celery@$(hostname)"]
CMD ["celery", "-A", "tasks", "worker", "--loglevel", "INFO"]
