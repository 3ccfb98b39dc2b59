# A small image: the binary and the C library, no shell, no root.
#   docker build -t mustela .
#   docker run -p 127.0.0.1:7070:7070 -p 127.0.0.1:9464:9464 -v mustela:/data mustela

# Both stages stand on Debian 12, so that the binary finds the glibc that it was linked to.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The caches outlive the layer; the binary is copied out of them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked \
    && install -D target/release/mustela /out/mustela \
    && mkdir /out/data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/mustela /usr/local/bin/mustela
# A named volume takes over the owner of the folder that it covers.
COPY --from=build --chown=65532:65532 /out/data /data
# Inside a container loopback reaches nobody. The defaults of everything else are in the binary.
ENV MUSTELA_LISTEN=0.0.0.0:7070 \
    MUSTELA_METRICS_LISTEN=0.0.0.0:9464 \
    MUSTELA_DATA_DIR=/data \
    MUSTELA_MODELS__DIR=/models \
    MUSTELA_LOG_FORMAT=json
EXPOSE 7070 9464
VOLUME /data
# By number: a cluster that lets no root in cannot look names up.
USER 65532:65532
# SIGTERM begins the draining; give it longer than http.shutdown_seconds: `docker stop -t 30`.
STOPSIGNAL SIGTERM
# There is no shell or client here to ask with, so the binary asks. A start takes as long as a large log takes to be checked.
# Where you move the doors, set MUSTELA_URL too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 CMD ["/usr/local/bin/mustela", "health"]
ENTRYPOINT ["/usr/local/bin/mustela"]
CMD ["serve"]
