#!/usr/bin/env python3
"""Writes events.json and verdicts.json: encoded examples of the batch layout.

Made from ../ABI.md alone, and shares no code with the host or an SDK, so that no side tests itself.
Nothing is random: running it again gives the same bytes. `make.py --check` fails where the files differ.
"""
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
NONE_U64, NONE_U32 = 2**64 - 1, 2**32 - 1


def word(seed, size):
    """`size` bytes that differ from those of any other seed, and from each other."""
    return bytes((seed * 37 + i * 11 + 1) % 256 for i in range(size))


def unhex(text):
    return bytes.fromhex(text.removeprefix("0x"))


def hx(data):
    return "0x" + data.hex()


# --- events -----------------------------------------------------------------------------------------------


def record(kind, fixed_len, at, flags=1, variable=b"", extra_fixed=b""):
    """One event record. `at` maps an offset in the fixed part to bytes, as the tables of ABI.md do."""
    fixed = bytearray(fixed_len)
    for offset, data in at.items():
        assert offset >= 8 and offset + len(data) <= fixed_len, (kind, offset)
        fixed[offset : offset + len(data)] = data
    body = bytes(fixed) + extra_fixed + variable
    total = -(-len(body) // 8) * 8
    body += bytes(total - len(body))
    head = struct.pack("<IBBH", total, kind, flags, fixed_len + len(extra_fixed))
    return head + body[8:]


def u8(v):
    return struct.pack("<B", v)


def u32(v):
    return struct.pack("<I", v)


def u64(v):
    return struct.pack("<Q", int(v))


def u128(v):
    return int(v).to_bytes(16, "little")


def encode_block(f, **kw):
    return record(1, 168, {
        8: u64(f["number"]), 16: u64(f["time"]), 24: u64(f["gas_used"]), 32: u64(f["gas_limit"]),
        40: u64(NONE_U64 if f["base_fee"] is None else f["base_fee"]),
        48: u32(NONE_U32 if f["transaction_count"] is None else f["transaction_count"]),
        56: unhex(f["hash"]), 88: unhex(f["parent"]), 120: unhex(f["beneficiary"]),
    }, flags=1 if f["subscribed"] else 0, **kw)


PLACES = {"address": 0, "topic0": 1, "topic1": 2, "topic2": 3, "topic3": 4, "sender": 5, "receiver": 6, "hash": 7}
HOWS = ["transaction", "creation", "call", "create", "create2", "selfdestruct"]


def encode_sets(sets):
    return b"".join(u8(PLACES[place]) + u8(len(name)) + name.encode() for place, name in sets)


def encode_transaction(f, kind=2, **kw):
    status = {None: 2, False: 0, True: 1}[f["success"]]
    present = (f["to"] is not None) | (f["created"] is not None) << 1
    data = unhex(f["input"])
    return record(kind, 208, {
        8: u32(f["index"]), 12: u8(status), 13: u8(f["type"]), 14: u8(present), 15: u8(len(f["sets"])),
        16: u64(f["nonce"]), 24: u64(f["gas_limit"]), 32: u64(f["gas_used"]), 40: u128(f["gas_price"]),
        56: unhex(f["hash"]), 88: int(f["value"]).to_bytes(32, "big"), 120: unhex(f["from"]),
        140: unhex(f["to"] or "00" * 20), 160: unhex(f["created"] or "00" * 20), 180: u32(len(data)),
    }, flags=1 if f["subscribed"] else 0, variable=data + encode_sets(f["sets"]), **kw)


def encode_log(f, **kw):
    data = unhex(f["data"])
    topics = b"".join(unhex(t) for t in f["topics"])
    return record(3, 80, {
        8: u32(f["index"]), 12: u32(f["transaction_index"]), 16: unhex(f["transaction_hash"]),
        48: unhex(f["address"]), 68: u8(len(f["topics"])), 69: u8(len(f["sets"])), 72: u32(len(data)),
        76: u32(len((f["decoded"] or "").encode())),
    }, flags=(1 if f["subscribed"] else 0) | (2 if f["made"] else 0),
        variable=topics + data + (f["decoded"] or "").encode() + encode_sets(f["sets"]), **kw)


def encode_transfer(f, **kw):
    return record(4, 128, {
        8: u32(f["index"]), 12: u32(f["transaction_index"]), 16: u8(HOWS.index(f["how"])), 17: u8(len(f["sets"])),
        18: struct.pack("<H", f["depth"]), 24: unhex(f["transaction_hash"]), 56: int(f["value"]).to_bytes(32, "big"),
        88: unhex(f["from"]), 108: unhex(f["to"]),
    }, flags=1 if f["subscribed"] else 0, variable=encode_sets(f["sets"]), **kw)


def encode_pending(f, **kw):
    return encode_transaction(f, kind=5, **kw)


ENCODE = {"block": encode_block, "pending": encode_pending, "transaction": encode_transaction, "log": encode_log, "transfer": encode_transfer}


def batch(chain, records, count=None, header_extra=b""):
    header = b"CWB1" + struct.pack("<HHQII", 24 + len(header_extra), 0, chain, len(records) if count is None else count, 0)
    assert len(header) == 24
    return header + header_extra + b"".join(records)


def block(seed, subscribed=True, **change):
    f = {"kind": "block", "subscribed": subscribed, "number": str(17_000_000 + seed), "time": str(1_700_000_000 + 12 * seed),
         "gas_used": "12345678", "gas_limit": "30000000", "base_fee": "7000000007", "transaction_count": 3,
         "hash": hx(word(seed, 32)), "parent": hx(word(seed + 1, 32)), "beneficiary": hx(word(seed + 2, 20))}
    return f | change


def transaction(seed, **change):
    f = {"kind": "transaction", "subscribed": True, "index": seed, "success": True, "type": 2,
         "nonce": "42", "gas_limit": "21000", "gas_used": "20999", "gas_price": "1000000007",
         "hash": hx(word(seed + 5, 32)), "value": str(10**18 + seed), "from": hx(word(seed + 6, 20)),
         "to": hx(word(seed + 7, 20)), "created": None, "input": "0x", "sets": []}
    return f | change


def log(seed, topics=3, data=32, **change):
    f = {"kind": "log", "subscribed": True, "index": seed, "transaction_index": seed // 2,
         "transaction_hash": hx(word(seed + 8, 32)), "address": hx(word(seed + 9, 20)),
         "topics": [hx(word(seed + 10 + i, 32)) for i in range(topics)], "data": hx(word(seed + 20, data)),
         "decoded": None, "made": False, "sets": []}
    return f | change


def transfer(seed, how, **change):
    f = {"kind": "transfer", "subscribed": True, "index": seed, "transaction_index": seed // 2, "how": how, "depth": seed,
         "transaction_hash": hx(word(seed + 8, 32)), "value": str(10**17 + seed), "from": hx(word(seed + 11, 20)),
         "to": hx(word(seed + 12, 20)), "sets": []}
    return f | change


def events():
    cases, malformed = [], []

    def case(name, about, fields, chain=1, data=None):
        cases.append({
            "name": name, "about": about, "chain": str(chain), "canonical": data is None, "records": fields,
            "hex": (data or batch(chain, [ENCODE[f["kind"]](f) for f in fields])).hex()})

    def bad(name, about, data):
        malformed.append({"name": name, "about": about, "hex": data.hex()})

    case("empty", "A header and no record.", [])
    case("block", "One block that the plugin asked for.", [block(1)])
    case("block-context", "Bit 0 is not set: the block is only context for the log after it.", [block(1, False), log(4)])
    case("block-absent-values", "No base fee, and the number of transactions is not known.",
         [block(2, base_fee=None, transaction_count=None)], chain=137)
    case("block-largest", "Every number at its largest that is not a sign for absence.",
         [block(3, number=str(2**64 - 1), time=str(2**64 - 1), gas_used=str(2**64 - 1), gas_limit=str(2**64 - 1),
                base_fee=str(2**64 - 2), transaction_count=2**32 - 2)], chain=2**64 - 1)
    case("transaction", "A plain transfer of value.", [block(1, False), transaction(0)])
    case("transaction-create", "No `to`, a created contract, 5 bytes of input that are padded to 8.",
         [block(1, False), transaction(1, to=None, created=hx(word(77, 20)), input="0x6001600203")])
    case("transaction-reverted", "Status 0.", [block(1, False), transaction(2, success=False, input=hx(word(3, 8)))])
    case("transaction-unknown", "Status 2: whether it succeeded is not known.",
         [block(1, False), transaction(3, success=None, gas_used="0", type=0)])
    case("transaction-largest", "Every number at its largest.",
         [block(1, False), transaction(4, index=2**32 - 1, type=255, nonce=str(2**64 - 1), gas_limit=str(2**64 - 1),
                                       gas_used=str(2**64 - 1), gas_price=str(2**128 - 1), value=str(2**256 - 1))])
    case("logs-by-topics", "0 to 4 topics, data of 0 to 64 bytes.",
         [block(1, False)] + [log(i, topics=i, data=16 * i) for i in range(5)])
    case("log-padding", "Data of 1 to 9 bytes: the end is padded to a multiple of 8.",
         [block(1, False)] + [log(i, topics=1, data=i) for i in range(1, 10)])
    case("log-large", "Data of 5,000 bytes.", [block(1, False), log(9, topics=2, data=5000)])
    case("two-blocks", "Events follow their block; every kind counts in the index.",
         [block(1), transaction(0), log(0), log(1), block(5, False), transaction(0, success=False), log(0, topics=4, data=0)])

    case("transfers", "Every way in which value moves or a contract comes to be.",
         [block(1, False)] + [transfer(i, how) for i, how in enumerate(HOWS)])
    case("transfer-largest", "Every number at its largest.",
         [block(1, False), transfer(1, "call", index=2**32 - 1, transaction_index=2**32 - 1, depth=2**16 - 1, value=str(2**256 - 1))])
    sets = [["sender", "a"], ["receiver", "deposit_addresses-2"], ["receiver", "x" * 64], ["hash", "a"]]
    case("sets", "Each kind of event with the watch sets that its values are in.",
         [block(1, False), transaction(0, input="0x010203", sets=sets), transfer(0, "call", sets=sets[:1]),
          log(0, data=5, sets=[["address", "tokens"], ["topic0", "a"], ["topic1", "b"], ["topic2", "c"], ["topic3", "d"]])])
    pending = {"kind": "pending", "index": NONE_U32, "success": None, "gas_used": "0"}
    case("pending", "Transactions that are in no block yet; the block before them is context.",
         [block(1, False), transaction(0, **pending), transaction(1, to=None, input="0x60", sets=sets, **pending)])
    case("decoded", "What the host decoded stands after the data, before the sets; it may be any text.",
         [block(1, False), log(0, data=7, decoded='{"event":"Transfer","args":{"note":"h\u00e9"}}', sets=[["topic2", "a"]]),
          log(1, data=0, topics=0, decoded='{"error":"it fits none"}')])
    case("made", "Bit 1 of the flags: a factory of the plugin made the contract.", [block(1, False), log(0, made=True), log(1)])

    one = [block(1, False), log(0)]
    case("unknown-kind", "A record of a kind that is not known is skipped, but counts in the index.",
         [one[0], {"kind": "unknown"}, one[1]],
         data=batch(1, [encode_block(one[0]), record(200, 16, {8: b"whatever"}, variable=b"more"), encode_log(one[1])]))
    case("longer-fixed-parts", "Fields appended to the fixed part by a later host are stepped over.",
         [block(1), transaction(1, input="0x0102"), log(0)],
         data=batch(1, [encode_block(block(1), extra_fixed=bytes(range(16))),
                        encode_transaction(transaction(1, input="0x0102"), extra_fixed=b"\xff" * 8),
                        encode_log(log(0), extra_fixed=b"\xee" * 24)]))
    case("longer-header", "The first record begins where the header says.", one,
         data=batch(1, [ENCODE[f["kind"]](f) for f in one], header_extra=b"\xaa" * 8))
    case("unknown-flags", "Flag bits other than bits 0 and 1 mean nothing yet.", one,
         data=batch(1, [encode_block(one[0]), encode_log(one[1])]).replace(
             encode_log(one[1])[:8], encode_log(one[1])[:5] + b"\x81" + encode_log(one[1])[6:8]))

    good = batch(1, [encode_block(one[0]), encode_log(one[1])])
    block_at, log_at = 24, 24 + 168

    def patched(at, data):
        return good[:at] + data + good[at + len(data):]

    bad("no-bytes", "Not even a header.", b"")
    bad("short-header", "A header cut short.", good[:23])
    bad("magic", "Another magic.", patched(0, b"CWV1"))
    bad("header-len-short", "`header_len` below 24.", patched(4, b"\x10\x00"))
    bad("header-len-long", "`header_len` beyond the end.", patched(4, b"\xff\xff"))
    bad("count-high", "The header promises one record more than there is.", patched(16, u32(3)))
    bad("count-low", "The header promises one record less than there is.", patched(16, u32(1)))
    bad("cut", "The last record is cut short.", good[:-8])
    bad("tail", "Four bytes after the last record.", good + bytes(4))
    bad("len-zero", "A record of length 0: a reader that trusts it never ends.", patched(block_at, u32(0)))
    bad("len-odd", "A length that is not a multiple of 8.", patched(log_at, u32(len(encode_log(one[1])) - 4)))
    bad("len-huge", "A length beyond the end.", patched(log_at, u32(2**32 - 8)))
    bad("fixed-short", "`fixed_len` smaller than layout 1 has it.", patched(log_at + 6, struct.pack("<H", 72)))
    bad("fixed-long", "`fixed_len` beyond the record.", patched(log_at + 6, struct.pack("<H", 65528)))
    bad("topics-five", "Five topics.", patched(log_at + 68, b"\x05"))
    bad("data-long", "Data longer than the record.", patched(log_at + 72, u32(2**31)))
    bad("data-huge", "A length of data that overflows 32 bits when added to.", patched(log_at + 72, u32(2**32 - 1)))
    bad("decoded-long", "What is decoded is longer than the record.", patched(log_at + 76, u32(2**31)))
    bad("sets-many", "More sets than there is room for.", patched(log_at + 69, b"\x09"))
    with_set = batch(1, [encode_block(one[0]), encode_transfer(transfer(0, "call", sets=[["sender", "abc"]]))])
    bad("set-long", "A set's name longer than the record.", with_set[:log_at + 129] + b"\xff" + with_set[log_at + 130:])
    tx = batch(1, [encode_block(one[0]), encode_transaction(transaction(0))])
    bad("input-long", "Input longer than the record.", tx[:24 + 168 + 180] + u32(9) + tx[24 + 168 + 184:])
    bad("no-block", "A log that follows no block.", batch(1, [encode_log(one[1])]))
    return {"layout": 1, "cases": cases, "malformed": malformed}


# --- verdicts ---------------------------------------------------------------------------------------------

TYPES = {"json": 0, "text": 1, "bytes": 2}


def verdict_record(kind, b5, h6, event, rest):
    total = -(-(12 + len(rest)) // 4) * 4
    return struct.pack("<IBBHI", total, kind, b5, h6, event) + rest + bytes(total - 12 - len(rest))


def encode_verdict(v):
    if v["verdict"] == "pass":
        return verdict_record(1, 0, v["stream"], v["event"], b"")
    if v["verdict"] == "emit":
        key, payload = v["lane_key"].encode(), unhex(v["payload"])
        return verdict_record(2, TYPES[v["content_type"]], v["stream"], v["event"],
                              u32(len(key)) + u32(len(payload)) + key + payload)
    message = v["message"].encode()
    return verdict_record(3, {"retry": 1, "reject": 2}[v["verdict"]], 0, v["event"], u32(len(message)) + message)


def answer(records, count=None, header_extra=b""):
    return b"CWV1" + struct.pack("<HHII", 16 + len(header_extra), 0, len(records) if count is None else count, 0) \
        + header_extra + b"".join(records)


def passes(event, stream=0):
    return {"verdict": "pass", "event": event, "stream": stream}


def emit(event, payload, stream=0, content_type="json", lane_key=""):
    payload = payload if isinstance(payload, bytes) else payload.encode()
    return {"verdict": "emit", "event": event, "stream": stream, "content_type": content_type, "lane_key": lane_key,
            "payload": hx(payload)}


def reject(event, message):
    return {"verdict": "reject", "event": event, "message": message}


def verdicts():
    cases, malformed = [], []

    def case(name, about, answers, events=8, streams=3, data=None):
        cases.append({
            "name": name, "about": about, "events": events, "streams": streams, "canonical": data is None,
            "verdicts": answers, "hex": (answer([encode_verdict(v) for v in answers]) if data is None else data).hex()})

    def bad(name, about, data, events=8, streams=3):
        malformed.append({"name": name, "about": about, "events": events, "streams": streams, "hex": data.hex()})

    case("nothing", "An answer of zero bytes.", [], data=b"")
    case("no-records", "A header and no record.", [])
    case("pass", "Two events pass as they are.", [passes(0), passes(7, 2)])
    case("emit-json", "Payloads whose lengths need 0 to 3 bytes of padding.",
         [emit(1, "1234"), emit(1, "12345"), emit(1, "[1, 2]"), emit(1, '{"a":1}')])
    case("emit-keyed", "A lane key of 1 to 4 bytes before the payload.",
         [emit(2, "{}", lane_key="k"), emit(2, "{}", lane_key="ke"), emit(2, "{}", lane_key="ü1"), emit(2, "{}", lane_key="keys")])
    case("emit-text", "Text, with characters of several bytes, and empty text.",
         [emit(3, "grüße €", 1, "text", "a"), emit(3, "", 1, "text")])
    case("emit-bytes", "Any bytes, also none.", [emit(4, bytes(range(256)), 2, "bytes"), emit(4, b"", 2, "bytes")])
    case("reject", "One poison event; what is said of the others stands.",
         [passes(0), reject(1, "no such token"), emit(2, "{}"), reject(3, "")])
    case("retry", "The whole batch is held back.", [{"verdict": "retry", "event": 5, "message": "not ready: ü"}])
    case("many-to-one", "Order within one event is the order of the answer; event numbers may fall.",
         [emit(5, "1"), passes(5, 1), emit(5, "2"), emit(0, "3", 2), passes(5, 1)])
    case("unknown-kind", "A record of a kind that is not known is skipped.", [passes(1)],
         data=answer([verdict_record(99, 0, 0, 0, b"12345678"), encode_verdict(passes(1))]))
    case("longer-header", "The first record begins where the header says.", [passes(1)],
         data=answer([encode_verdict(passes(1))], header_extra=bytes(8)))

    good = answer([encode_verdict(emit(1, '{"a":1}', lane_key="k"))])

    def patched(at, data):
        return good[:at] + data + good[at + len(data):]

    bad("short-header", "A header cut short.", good[:15])
    bad("magic", "Another magic.", patched(0, b"CWB1"))
    bad("header-len-short", "`header_len` below 16.", patched(4, b"\x08\x00"))
    bad("header-len-long", "`header_len` beyond the end.", patched(4, b"\xff\x7f"))
    bad("count-high", "The header promises one record more than there is.", patched(8, u32(2)))
    bad("count-low", "The header promises none, there is one.", patched(8, u32(0)))
    bad("cut", "The last record is cut short.", good[:-4])
    bad("tail", "Four bytes after the last record.", good + bytes(4))
    bad("len-zero", "A record of length 0.", patched(16, u32(0)))
    bad("len-odd", "A length that is not a multiple of 4.", patched(16, u32(len(good) - 17)))
    bad("len-huge", "A length beyond the end.", patched(16, u32(2**32 - 4)))
    bad("event", "An event that the batch did not have.", good, events=1)
    bad("stream", "A stream that the manifest does not have.", good, streams=0)
    bad("content-type", "A content type that is not known.", patched(21, b"\x03"))
    bad("key-long", "A lane key longer than the record.", patched(28, u32(2**32 - 1)))
    bad("payload-long", "A payload longer than the record.", patched(32, u32(2**32 - 1)))
    bad("json", "A payload that says it is JSON and is not.", answer([encode_verdict(emit(1, "{"))]))
    bad("json-tail", "JSON with something after it.", answer([encode_verdict(emit(1, "{} x"))]))
    bad("text-utf8", "A text that is not UTF-8.", answer([encode_verdict(emit(1, b"\xff\xfe", content_type="text"))]))
    bad("key-utf8", "A lane key that is not UTF-8.", patched(36, b"\xff"))
    bad("fault-kind", "A fault that is neither retry nor reject.",
        answer([verdict_record(3, 9, 0, 0, u32(0))]))
    bad("message-long", "A message longer than the record.", answer([verdict_record(3, 2, 0, 0, u32(5) + b"abcd")]))
    return {"layout": 1, "cases": cases, "malformed": malformed}


def main():
    for name, content in (("events.json", events()), ("verdicts.json", verdicts())):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        path = HERE / name
        if "--check" in sys.argv:
            if path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path.name} is not what make.py writes: run sdk/vectors/make.py")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name}: {len(content['cases'])} cases, {len(content['malformed'])} malformed")


main()
