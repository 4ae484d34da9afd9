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
    SPOOL_DIR=/var/lib/perennial/spool MEDIA_DIR=/var/lib/perennial/media \
    HEARTBEAT_FILE=/tmp/heartbeat
# The folders of volumes are made here, or the volumes would be root's. Dead letters that Redis would
# not take wait in the one, videos that are not delivered yet in the other; everything else is in
# Redis and PostgreSQL. Side by side, not one in the other: Docker stumbles over that when several
# containers begin with such volumes at once.
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin perennial \
    && install --directory --owner perennial --group nogroup \
        /var/lib/perennial /var/lib/perennial/spool /var/lib/perennial/media
COPY --from=build /opt/perennial /opt/perennial
WORKDIR /app
COPY flowerconfig.py LICENSE ./
USER perennial
# SIGTERM lets a worker finish what it has begun.
STOPSIGNAL SIGTERM
# Of a worker and of beat, whose loop turns twice a minute at least. Other processes have another.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["sh", "-c", "find $HEARTBEAT_FILE -newermt '60 seconds ago' | grep -q ."]
CMD ["celery", "-A", "tasks", "worker", "--loglevel", "INFO"]
