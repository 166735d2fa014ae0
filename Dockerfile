# blip-server in a container without a shell, running as an unprivileged user.
#
#   docker build -t blip-server .
#   docker run --rm -p 127.0.0.1:8080:8080 blip-server                # the demo models, nothing to download
#   docker run --rm -p 127.0.0.1:8080:8080 -v blip-weights:/weights blip-server serve --model Salesforce/blip-vqa-base
#
# For NVIDIA GPUs, with the NVIDIA Container Toolkit on the host:
#
#   docker build -t blip-server:cuda --target cuda .
#   docker run --rm --gpus 1 -p 127.0.0.1:8080:8080 blip-server:cuda serve --device cuda
#
# Needs BuildKit (Docker's default since version 23). Tags name exact versions where an image has them, but a tag can be
# moved. Before a build that others rely on, pin the digests of both images (`FROM image:tag@sha256:...`; `docker buildx
# imagetools inspect IMAGE` prints them). They are not pinned here because no image registry was reachable when this
# file was written.

# Debian 13 in both stages, so that the binary finds the libraries that it was linked with.
FROM rust:1.95.0-trixie AS builder
# The toolchain of the image, which is the version of rust-toolchain.toml. Setting it here keeps rustup from downloading
# the components that the file lists.
ENV RUSTUP_TOOLCHAIN=1.95.0
# cargo-auditable embeds the list of packages in the binary; cargo-cyclonedx writes it as a file (SBOM). In a layer
# before the source, so that changes of the source do not rebuild them. Without optimisation they compile faster.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --debug --locked cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9
WORKDIR /src
COPY . .
# Downloaded and built dependencies stay in the builder's caches, so a source change rebuilds only this crate. The
# release profile strips the binary. The target folder is a cache and not a layer, so the binary is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo auditable build --release --locked --bin blip-server \
    && cargo cyclonedx --format json --spec-version 1.5 --override-filename blip-server.cdx \
    && mkdir -p /out/weights \
    && cp target/release/blip-server blip-server.cdx.json /out/

FROM gcr.io/distroless/cc-debian13:nonroot AS server
# docker build --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) --build-arg CREATED=$(date -u +%FT%TZ)
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="blip-server" \
      org.opencontainers.image.description="HTTP inference server for BLIP: captions, visual question answering, image-text similarity, embeddings" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian13:nonroot"
COPY --from=builder /out/blip-server /usr/local/bin/blip-server
# `id=$(docker create blip-server) && docker cp "$id:/usr/share/sbom/blip-server.cdx.json" .` copies it out of the image.
COPY --from=builder /out/blip-server.cdx.json /usr/share/sbom/blip-server.cdx.json
COPY config/docker.toml /etc/blip-server/docker.toml
# A named volume inherits its owner from this folder.
COPY --from=builder --chown=65532:65532 /out/weights /weights
ENV HF_HOME=/weights
VOLUME /weights
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# The demo models are ready within seconds. The first start with other models downloads gigabytes, so failed checks
# count only after ten minutes.
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --start-interval=1s --retries=3 \
    CMD ["/usr/local/bin/blip-server", "healthcheck", "--config", "/etc/blip-server/docker.toml"]
# If you pass your own `--config` after the image name, it wins over this one.
ENTRYPOINT ["/usr/local/bin/blip-server", "--config", "/etc/blip-server/docker.toml"]
CMD ["serve"]

FROM nvidia/cuda:12.9.1-runtime-ubuntu24.04 AS cuda-libraries
# The libraries that the binary opens at run time, about 800 MB: matrix products, and the compiler of the kernels. The
# driver's library comes from the host: the container toolkit mounts it.
RUN mkdir /out \
    && cp -L /usr/local/cuda/lib64/libcublasLt.so.12 /usr/local/cuda/lib64/libnvrtc.so.12 /out/ \
    && cp -P /usr/local/cuda/lib64/libnvrtc-builtins.so.12* /out/

# The same binary as in the other image.
FROM server AS cuda
COPY --from=cuda-libraries /out/ /usr/local/lib/cuda/
ENV LD_LIBRARY_PATH=/usr/local/lib/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What `docker build` without `--target` builds.
FROM server
