"""Reads TensorBoard event files without TensorBoard, checking every checksum with Google's library.

Prints JSON: files, each a list of events with step, and whichever of version, session and values it has.
"""

import json
import struct
import sys
from pathlib import Path

import google_crc32c


def masked(data):
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    while data:
        length, check = struct.unpack_from("<QI", data)
        assert check == masked(data[:8]), "checksum of a length"
        body = data[12 : 12 + length]
        (check,) = struct.unpack_from("<I", data, 12 + length)
        assert check == masked(body), "checksum of a record"
        yield body
        data = data[16 + length :]


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire == 1:
            (value,), at = struct.unpack_from("<d", data, at), at + 8
        elif wire == 5:
            (value,), at = struct.unpack_from("<f", data, at), at + 4
        else:
            assert wire == 2, wire
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def event(data):
    found = {"values": {}}
    for field, value in fields(data):
        if field == 1:
            found["time"] = value
        elif field == 2:
            found["step"] = value
        elif field == 3:
            found["version"] = value.decode()
        elif field == 5:
            for _, one in fields(value):
                parts = dict(fields(one))
                found["values"][parts[1].decode()] = parts[2]
        elif field == 7:
            found["session"] = dict(fields(value))[1]
        else:
            raise AssertionError(f"field {field}")
    return found


files = sorted(Path(sys.argv[1]).glob("events.out.tfevents.*"))
json.dump([[event(body) for body in records(file.read_bytes())] for file in files], sys.stdout)
