# One image for every part: api, scheduler, agent. Built from a clone; runs without root.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p holdfast && \
    cp target/release/holdfast /holdfast

FROM debian:bookworm-slim
# The distribution's own cluster is neither made nor started: agents make theirs.
RUN mkdir -p /etc/postgresql-common/createcluster.d && \
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/no-main-cluster.conf && \
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl postgresql tini && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --user-group --uid 10001 --home-dir /var/lib/holdfast --shell /usr/sbin/nologin holdfast && \
    install -d -o holdfast -g holdfast -m 0711 \
        /var/lib/holdfast /var/lib/holdfast/state /var/lib/holdfast/vault /var/lib/holdfast/shared \
        /var/lib/holdfast/authority /var/lib/holdfast/tls /run/holdfast
COPY --from=build /holdfast /usr/local/bin/holdfast
USER holdfast
WORKDIR /var/lib/holdfast
# tini forwards signals and reaps what PostgreSQL's children leave behind.
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/holdfast"]
CMD ["--help"]
