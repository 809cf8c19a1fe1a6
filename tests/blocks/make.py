#!/usr/bin/env python3
"""Writes made.ndjson: blocks of rollups' unsigned transactions, in all their forms, hashed by other libraries than the
host's: `pip install rlp trie "eth-hash[pycryptodome]"`. The field orders are those of the chains' specifications."""

import json
import os

import rlp
from eth_hash.auto import keccak
from trie import HexaryTrie

ZERO = b"\0" * 32
EMPTY_LIST = keccak(rlp.encode([]))


def hx(b):
    return "0x" + b.hex()


def num(n):
    return hex(n)


def root(items):
    trie = HexaryTrie({})
    for i, item in enumerate(items):
        trie[rlp.encode(i)] = item
    return trie.root_hash


def bloom(logs):
    bits = 0
    for address, topics, _ in logs:
        for word in [address, *topics]:
            digest = keccak(word)
            for i in (0, 2, 4):
                bits |= 1 << (int.from_bytes(digest[i : i + 2], "big") & 2047)
    return bits.to_bytes(256, "big")


A, B, C = b"\xaa" * 20, b"\xbb" * 20, b"\xcc" * 20
H = bytes(range(32))
LOG = (C, [H, A.rjust(32, b"\0")], b"data of a log")


def block(chain, number, transactions, withdrawals_root=None):
    """transactions: (type, hashed fields, told fields, from, status, logs, deposit)"""
    bodies = [bytes([t]) + rlp.encode(fields) for t, fields, *_ in transactions]
    receipts, told_receipts, gas = [], [], 0
    every = [log for *_, logs, _ in transactions for log in logs]
    for t, _, _, _, status, logs, deposit in transactions:
        gas += 21_000
        fields = [status, gas, bloom(logs), [[a, topics, data] for a, topics, data in logs]]
        hashed = deposit is not None and len(deposit) == 2
        receipts.append(bytes([t]) + rlp.encode(fields + (list(deposit) if hashed else [])))
    header = [ZERO, EMPTY_LIST, B, H, root(bodies), root(receipts), bloom(every), 0, number, 30_000_000, gas,
              1_700_000_000, b"", ZERO, b"\0" * 8, 7]
    told = {"parentHash": hx(ZERO), "sha3Uncles": hx(EMPTY_LIST), "miner": hx(B), "stateRoot": hx(H),
            "transactionsRoot": hx(header[4]), "receiptsRoot": hx(header[5]), "logsBloom": hx(header[6]),
            "difficulty": "0x0", "number": num(number), "gasLimit": num(30_000_000), "gasUsed": num(gas),
            "timestamp": num(1_700_000_000), "extraData": "0x", "mixHash": hx(ZERO), "nonce": "0x0000000000000000",
            "baseFeePerGas": "0x7", "uncles": []}
    if withdrawals_root:
        header.append(withdrawals_root)
        told |= {"withdrawalsRoot": hx(withdrawals_root), "withdrawals": []}
    block_hash = keccak(rlp.encode(header))
    txs, at, gas = [], 0, 0
    for i, (t, _, fields, sender, status, logs, deposit) in enumerate(transactions):
        tx_hash, gas = keccak(bodies[i]), gas + 21_000
        place = {"blockHash": hx(block_hash), "blockNumber": num(number), "transactionIndex": num(i)}
        txs.append({"hash": hx(tx_hash), "type": num(t), "from": hx(sender), "nonce": "0x0", **place, **fields})
        own = []
        for address, topics, data in logs:
            own.append({"address": hx(address), "topics": [hx(x) for x in topics], "data": hx(data),
                        "transactionHash": hx(tx_hash), "logIndex": num(at), **place})
            at += 1
        receipt = {"transactionHash": hx(tx_hash), "type": num(t), "status": num(status), "gasUsed": num(21_000),
                   "cumulativeGasUsed": num(gas), "effectiveGasPrice": "0x0", "contractAddress": None, "logs": own, **place}
        if deposit:
            receipt["depositNonce"] = num(deposit[0])
        if deposit and len(deposit) == 2:
            receipt["depositReceiptVersion"] = num(deposit[1])
        told_receipts.append(receipt)
    told |= {"hash": hx(block_hash), "transactions": txs}
    return {"chainId": chain, "number": number, "hash": hx(block_hash), "block": told, "receipts": told_receipts}


def deposit(mint, value, to, system, data, status, logs, receipt):
    fields = [H, A, to or b"", mint or 0, value, 1_000_000, 1 if system else 0, data]
    told = {"sourceHash": hx(H), "to": to and hx(to), "value": num(value), "gas": num(1_000_000), "input": hx(data)}
    if mint is not None:
        told["mint"] = num(mint)
    if system:
        told["isSystemTx"] = True
    return (0x7E, fields, told, A, status, logs, receipt)


L1 = [deposit(None, 0, B, True, b"\x01\x5d", 1, [], None), deposit(5 * 10**18, 10**18, C, False, b"", 1, [LOG], None)]
REGOLITH = [deposit(0, 0, B, False, b"x" * 60, 1, [LOG, LOG], (3,)), deposit(1, 1, None, False, b"\x60\x00", 0, [], (9,))]
CANYON = [deposit(0, 0, B, False, b"", 1, [LOG], (0, 1)), deposit(7, 7, None, False, b"\x60\x00", 0, [], (300, 1))]

ID = 42161
CALL = {"maxFeePerGas": "0x64", "gas": num(90_000), "value": "0x5", "input": "0x0102"}
ARBITRUM = [
    (0x6A, [ID, b"\x6b\xf6"], {"input": "0x6bf6", "to": hx(bytes.fromhex("000a4b05").rjust(20, b"\0"))},
     bytes.fromhex("000a4b05").rjust(20, b"\0"), 1, [], None),
    (0x64, [ID, H, A, B, 10**18], {"requestId": hx(H), "to": hx(B), "value": num(10**18)}, A, 1, [], None),
    (0x65, [ID, A, 3, 100, 90_000, B, 5, b"\1\2"], {"nonce": "0x3", "to": hx(B), **CALL}, A, 1, [LOG], None),
    (0x66, [ID, H, A, 100, 90_000, b"", 5, b"\1\2"], {"requestId": hx(H), "to": None, **CALL}, A, 0, [], None),
    (0x68, [ID, 2, A, 100, 90_000, B, 5, b"\1\2", H, C, 77, 78],
     {"nonce": "0x2", "to": hx(B), "ticketId": hx(H), "refundTo": hx(C), "maxRefund": "0x4d", "submissionFeeRefund": "0x4e",
      **CALL}, A, 1, [LOG], None),
    (0x69, [ID, H, A, 12, 13, 100, 90_000, B, 14, C, 15, A, b"\5\6"],
     {"to": "0x000000000000000000000000000000000000006e", "requestId": hx(H), "l1BaseFee": "0xc", "depositValue": "0xd",
      "retryTo": hx(B), "retryValue": "0xe", "beneficiary": hx(C), "maxSubmissionFee": "0xf", "refundTo": hx(A),
      "retryData": "0x0506", **CALL, "value": "0x0", "input": "0xc9f95d32"}, A, 1, [], None),
]
for fields in ARBITRUM:
    fields[2]["chainId"] = num(ID)

LINES = [
    block(10, 1_000, L1),
    block(10, 2_000, REGOLITH),
    block(10, 3_000, CANYON, keccak(b"not a list of withdrawals")),
    block(ID, 30_000_000, ARBITRUM),
]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "made.ndjson"), "w") as out:
    for line in LINES:
        out.write(json.dumps(line, separators=(",", ":")) + "\n")
