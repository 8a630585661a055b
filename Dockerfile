# One image for all processes of the example shop: web, workers, clock, dashboard and migration differ in their command alone.
# docker-compose.yml runs them. Your own image needs your application in the place of examples/shop.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY async_task async_task
COPY cli cli
COPY examples/shop examples/shop
RUN python -m venv /opt/venv
RUN /opt/venv/bin/python -m pip install --no-cache-dir '.[postgres,scheduler,web]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /srv/shop shop
COPY --from=build /opt/venv /opt/venv
COPY examples/shop /srv/shop/shop
# Compiled here: the user of the processes cannot write there, and each start and each probe would compile again.
RUN /opt/venv/bin/python -m compileall -q /srv/shop
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 ASYNC_TASK_APP=shop.app:outbox ASYNC_TASK_LOG_FORMAT=json
WORKDIR /srv/shop
USER shop
# As a list and not as a text: a shell between would be process 1, and keep SIGTERM to itself.
CMD ["async-task", "worker"]
