"""Prints a token of a buyer who may do everything: HS256, good for an hour. Usage: bearer.py SECRET"""

import base64
import hashlib
import hmac
import json
import sys
import time


def part(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


claims = {
    "sub": "fuzz",
    "scope": "floodgate:admin floodgate:submit",
    "exp": int(time.time()) + 3600,
}
signed = ".".join(part(json.dumps(value).encode()) for value in ({"alg": "HS256"}, claims))
signature = hmac.new(sys.argv[1].encode(), signed.encode(), hashlib.sha256).digest()
print(f"{signed}.{part(signature)}")
