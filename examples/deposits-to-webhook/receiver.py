"""python3 receiver.py [PORT]: a ledger of deposits, kept right through reorgs. Python 3.9 or later, nothing to install."""
import base64, copy, hashlib, hmac, json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

KEY = base64.b64decode(os.environ["HOOK_SECRET"].removeprefix("whsec_"))
ADDRESS = os.environ["DEPOSIT_ADDRESS"].lower()
FILE = os.environ.get("LEDGER", "ledger.json")
ledger = json.load(open(FILE)) if os.path.exists(FILE) else {"seen": {}, "deposits": {}}


def genuine(headers, body):
    id, sent, signatures = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not id or not sent.isdecimal() or abs(time.time() - int(sent)) > 300:
        return False
    digest = hmac.new(KEY, f"{id}.{sent}.".encode() + body, hashlib.sha256).digest()
    right = b"v1," + base64.b64encode(digest)
    return any(hmac.compare_digest(right, given.encode()) for given in signatures.split(" "))


def receive(headers, body):
    global ledger
    if not genuine(headers, body):
        return 401
    event, id = json.loads(body), headers["webhook-id"]
    if id in ledger["seen"]:
        return 204  # Sent again because our answer was lost.
    new = copy.deepcopy(ledger)  # Only what is on disk counts: if writing fails, it is sent again.
    new["seen"][id] = True
    # The address's own payments come, too: they are no deposits.
    if event["op"] == "apply" and event["data"]["to"].lower() == ADDRESS:
        new["deposits"][event["emission"]] = event["data"]
    elif event["op"] == "retract":
        new["deposits"].pop(event["emission"], None)
    with open(FILE + ".new", "w") as file:
        json.dump(new, file)
    os.replace(FILE + ".new", FILE)
    ledger = new
    return 204


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        status = 500  # Not stored: it will be sent again.
        try:
            status = receive(self.headers, body)
        finally:
            self.send_response(status)
            self.end_headers()

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Receiver)
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()
