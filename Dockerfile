# blip-server in a container without a shell, as a user without rights.
#
#   docker build -t blip-server .
#   docker run -p 127.0.0.1:8080:8080 blip-server                     # the demo models, nothing to download
#   docker run -p 127.0.0.1:8080:8080 -v blip-weights:/weights blip-server serve --model Salesforce/blip-vqa-base
#
# Tags name exact versions where an image has them; a tag can be moved all the same. Pin the digests of both images
# (`FROM image:tag@sha256:...`; `docker buildx imagetools inspect IMAGE` prints them) before a build that others rely on:
# no registry of images could be asked where this file was written.

# Debian 12 on both sides: what is linked here runs there.
FROM rust:1.95.0-bookworm AS chef
# The image's own toolchain is the one of rust-toolchain.toml; without its components nothing is downloaded.
ENV RUSTUP_TOOLCHAIN=1.95.0
RUN cargo install cargo-chef --locked --version 0.1.78
WORKDIR /src

# What the dependencies are, without the source: the next stage's layer holds until they change.
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
COPY --from=planner /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --bin blip-server \
    && mkdir /weights

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=builder /src/target/release/blip-server /usr/local/bin/blip-server
COPY config/docker.toml /etc/blip-server/docker.toml
# A named volume takes its owner from here.
COPY --from=builder --chown=65532:65532 /weights /weights
ENV HF_HOME=/weights
VOLUME /weights
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# The first start downloads gigabytes: not being ready counts only after ten minutes.
HEALTHCHECK --interval=10s --timeout=6s --start-period=600s --retries=3 \
    CMD ["/usr/local/bin/blip-server", "healthcheck", "--config", "/etc/blip-server/docker.toml"]
# A `--config` of your own, given after the image's name, wins over this one.
ENTRYPOINT ["/usr/local/bin/blip-server", "--config", "/etc/blip-server/docker.toml"]
CMD ["serve"]
