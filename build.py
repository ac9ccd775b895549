"""python build.py --model M --target T --quantization Q: see rwkv_mlc/cli/build.py."""

import sys

from rwkv_mlc.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
