"""python build.py --model M --target T --quantization Q: see rwkv_mlc/cli/build.py."""

import sys

from rwkv_mlc.__main__ import start

if __name__ == "__main__":
    sys.exit(start(["build", *sys.argv[1:]], build_program="build.py"))
