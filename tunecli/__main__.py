import sys

from tunecli.cli import main

sys.exit(main())
