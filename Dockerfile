# Every image of the suite. The build context is the root of the repository:
#   docker build -t estsuite/audit:0.1.0 --build-arg PACKAGE=estsuite-audit --build-arg COMMAND=est-audit .
# make images builds all of them; deploy/README.md lists their arguments. Docker 20.10, with or without BuildKit.
#
# The base image has its digest here once deploy/images.lock knows it: make images-lock.
ARG BASE=python:3.13.14-slim-bookworm@sha256:9d7f287598e1a5a978c015ee176d8216435aaf335ed69ac3c38dd1bbb10e8d64

FROM ${BASE} AS build
# The distribution to install, its extras (separated by spaces), and the command the image runs.
ARG PACKAGE
ARG EXTRAS=""
ARG COMMAND
# Where uv and the build backend come from; the locked packages come from the URLs in uv.lock.
# HTTP_PROXY, HTTPS_PROXY and NO_PROXY need no declaration in Docker.
ARG INDEX=https://pypi.org/simple
ENV UV_PROJECT_ENVIRONMENT=/opt/estsuite \
    UV_PYTHON=/usr/local/bin/python3 \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
WORKDIR /src
# ca-bundle.crt is optional: certificates (PEM) to trust when packages come through a TLS proxy.
COPY pyproject.toml uv.lock ca-bundle.cr[t] ./
COPY deploy ./deploy
COPY libs ./libs
COPY services ./services
RUN if [ -f ca-bundle.crt ]; then export PIP_CERT=/src/ca-bundle.crt; fi && \
    pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --index-url "$INDEX" \
        --require-hashes --only-binary :all: -r deploy/requirements-uv.txt
# By hash: uv above, the locked packages, and what builds ours (pyproject.toml). The locked versions of one package and its dependencies. Nothing else is in the image: beside
# the CA key there is no HTTP framework, and nowhere are there tests or tools.
RUN set -e; \
    : "${PACKAGE:?--build-arg PACKAGE is missing}" "${COMMAND:?--build-arg COMMAND is missing}"; \
    if [ -f ca-bundle.crt ]; then export SSL_CERT_FILE=/src/ca-bundle.crt; fi; \
    for extra in $EXTRAS; do set -- "$@" --extra "$extra"; done; \
    uv sync --frozen --no-dev --no-editable --default-index "$INDEX" --package "$PACKAGE" "$@"; \
    find "$UV_PROJECT_ENVIRONMENT" -type d \( -path '*/sqlalchemy/testing' -o -path '*/alembic/testing' \
        -o -path '*/greenlet/tests' \) -prune -exec rm -r {} +; \
    "$UV_PROJECT_ENVIRONMENT/bin/python" deploy/estsupply/strip_symbols.py "$UV_PROJECT_ENVIRONMENT/lib"; \
    test -x "$UV_PROJECT_ENVIRONMENT/bin/$COMMAND"; \
    ln -s "$COMMAND" "$UV_PROJECT_ENVIRONMENT/bin/entrypoint"; \
    SBOM="$UV_PROJECT_ENVIRONMENT/share/sbom.cdx.json" "$UV_PROJECT_ENVIRONMENT/bin/python" deploy/estsupply/sbom.py

# An image that runs one verb and ends: docker build --target job
FROM ${BASE} AS job
COPY --from=build /opt/estsuite /opt/estsuite
ARG TITLE="estsuite"
ARG VERSION=""
ARG REVISION=""
ARG LICENSES=Apache-2.0
# The bill of materials (CycloneDX) of what is installed.
LABEL estsuite.sbom=/opt/estsuite/share/sbom.cdx.json
LABEL org.opencontainers.image.title=$TITLE \
    org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$REVISION \
    org.opencontainers.image.licenses=$LICENSES
# HOME: the numeric user has no entry in /etc/passwd, and the root file system may be read-only.
ENV PATH=/opt/estsuite/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
# A link to COMMAND: no shell stands between the platform's signals and the service.
ENTRYPOINT ["/opt/estsuite/bin/entrypoint"]
CMD ["--help"]

# An image that serves until SIGTERM; the default target.
FROM job AS service
# /healthz answers while the event loop runs; readiness is /readyz, for the platform to ask.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h, sys; c = h.HTTPConnection('127.0.0.1', 9100, timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["run"]
