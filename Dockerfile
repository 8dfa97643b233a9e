# mssync in a container, for the CPU:
#   docker build -t mssync .
#   docker run --rm -v "$PWD:/work" mssync animate portrait.png speech.wav -o talking.mp4
# The studio, which prints the address to open, with its token (localhost:8765 is this machine alone):
#   docker run --rm -it -p 127.0.0.1:8765:8765 mssync serve --host 0.0.0.0
FROM python:3.13-slim

# PyTorch without CUDA is a tenth of the size.
COPY pyproject.toml README.md LICENSE /src/
COPY mssync /src/mssync
COPY configs /src/configs
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu 'torch>=2.6,<2.14' \
    && pip install --no-cache-dir '/src[demo,app]' \
    && rm -rf /src

# Not root. Give --user "$(id -u):$(id -g)" to write into a mounted folder of yours.
RUN useradd --create-home mssync
USER mssync
WORKDIR /work
EXPOSE 8765
ENTRYPOINT ["mssync"]
CMD ["--help"]
