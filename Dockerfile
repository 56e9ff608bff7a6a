# syntax=docker/dockerfile:1
# SPDX-License-Identifier: Apache-2.0
#
# Two images, each with the dependencies of its program only:
#
#   docker buildx build --target proxy    -t ghcr.io/mailproxy/mailproxy:0.1.0 .
#   docker buildx build --target operator -t ghcr.io/mailproxy/mailproxy-operator:0.1.0 .
#
# Behind a proxy that inspects TLS, pip needs its authority: --secret id=ca,src=FILE.  It is in no layer.
#
# Packages are installed from lists with the hash of every file (`make locks` updates them), and only as wheels: there
# is no compiler. strip.py removes what the program never imports, before the rest is compiled to bytecode: the root of
# the images is read-only, so that Python cannot cache bytecode later. docs/images.md has the sizes. Tests run these
# steps without a container engine.

ARG PYTHON=docker.io/library/python:3.14-slim-trixie@sha256:51dafde81dbdb6ebde285137a295cf18a47ca95234fe388a343719cb97305b3d

# ---- the wheel of MailProxy, and the build tools -----------------------------------------------------------------
FROM ${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ONLY_BINARY=:all: PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY deploy/images/requirements-build.txt /src/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && python -m venv /build \
 && /build/bin/python -m pip install --quiet --require-hashes -r requirements-build.txt
COPY pyproject.toml README.md LICENSE /src/
COPY operator /src/operator
COPY proxy /src/proxy
# The revision becomes the local part of the version, and a label of the metric mailproxy_build_info.
ARG REVISION=""
ARG SOURCE_DATE_EPOCH=0
RUN test -z "${REVISION}" || sed -i "s/^version = \"\(.*\)\"$/version = \"\1+${REVISION}\"/" pyproject.toml
RUN /build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

# ---- the proxy: neither kopf nor the Kubernetes client -----------------------------------------------------------
FROM build AS build-proxy
COPY deploy/images/requirements-proxy.txt deploy/images/strip.py /src/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && python -m venv --without-pip /opt/mailproxy \
 && /build/bin/python -m pip --python /opt/mailproxy/bin/python install --quiet --require-hashes -r requirements-proxy.txt \
 && /build/bin/python -m pip --python /opt/mailproxy/bin/python install --quiet --no-deps --no-index --find-links /wheels mailproxy \
 && rm -r /opt/mailproxy/lib/python3.*/site-packages/mailproxy_operator \
 && /build/bin/python strip.py /opt/mailproxy mailproxy \
 && /opt/mailproxy/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/mailproxy/lib

FROM ${PYTHON} AS proxy
ARG REVISION=""
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="mailproxy" \
      org.opencontainers.image.description="An SMTP, IMAP and POP3 proxy with nginx's mail directives" \
      org.opencontainers.image.source="https://github.com/mailproxy/mailproxy" \
      org.opencontainers.image.documentation="https://github.com/mailproxy/mailproxy/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build-proxy /opt/mailproxy /opt/mailproxy
ENV PATH=/opt/mailproxy/bin:$PATH USER=mailproxy HOME=/ PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /
EXPOSE 9113
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:9113/healthz', timeout=4)"]
ENTRYPOINT ["mailproxy"]
CMD ["run", "-f", "/etc/mailproxy/mailproxy.json", "--admin", "[::]:9113"]

# ---- the operator ------------------------------------------------------------------------------------------------
FROM build AS build-operator
COPY deploy/images/requirements-operator.txt deploy/images/strip.py /src/
RUN --mount=type=secret,id=ca \
    if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && python -m venv --without-pip /opt/mailproxy \
 && /build/bin/python -m pip --python /opt/mailproxy/bin/python install --quiet --require-hashes -r requirements-operator.txt \
 && /build/bin/python -m pip --python /opt/mailproxy/bin/python install --quiet --no-deps --no-index --find-links /wheels mailproxy \
 && rm -r /opt/mailproxy/lib/python3.*/site-packages/mailproxy \
 && /build/bin/python strip.py /opt/mailproxy mailproxy-operator \
 && /opt/mailproxy/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/mailproxy/lib

FROM ${PYTHON} AS operator
# USER and HOME: kopf reads the user's name, the Kubernetes client the home folder; user 65532 is not in /etc/passwd.
ARG REVISION=""
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="mailproxy-operator" \
      org.opencontainers.image.description="The operator of MailProxy resources" \
      org.opencontainers.image.source="https://github.com/mailproxy/mailproxy" \
      org.opencontainers.image.documentation="https://github.com/mailproxy/mailproxy/tree/main/docs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build-operator /opt/mailproxy /opt/mailproxy
ENV PATH=/opt/mailproxy/bin:$PATH USER=mailproxy HOME=/ PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8080/healthz', timeout=4)"]
ENTRYPOINT ["mailproxy-operator"]
CMD ["run", "--admin", ":8080"]
