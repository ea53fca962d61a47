# Started as `python3 -I -S -B boot.py`. A script is compiled anew at each start, so everything else is in the package.
import sys

sys.path.insert(0, __file__[: -len("boot.py")])
from colibri_runtime import server

server.main()
