#!/usr/bin/env python3
"""For a container: exits 1 where a run with `--serve` says that results no longer come.

    healthcheck.py [PORT]

The token is the environment's STREAM_RPN_TOKEN. A run without `--serve` cannot be asked: it is well
while its process is there, which the container's engine sees by itself.
"""

import os
import sys
import urllib.error
import urllib.request

port = sys.argv[1] if len(sys.argv) > 1 else "8000"
headers = {"Authorization": f"Bearer {os.environ.get('STREAM_RPN_TOKEN', '')}"}
try:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as error:
    sys.exit(f"{error.code}: {error.read().decode().strip()}")
except urllib.error.URLError as error:
    if not isinstance(error.reason, ConnectionRefusedError):
        sys.exit(f"no answer from port {port}: {error.reason}")
    print(f"nothing listens at port {port}: a run without --serve")
except TimeoutError:
    sys.exit(f"no answer from port {port} within 5 s")
