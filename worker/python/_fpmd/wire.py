"""The frames of the exchange protocol (PROTOCOL.md section 4)."""

from struct import Struct

VERSION = 1

REQUEST = 1
BODY = 2
GREETING = 16
RESPONSE = 17
DATA = 18
CUT = 19
WITHDRAWN = 20

FLAG_LAST = 1
FLAG_CUT = 2
FLAG_FAILED = 4

MAX_PAYLOAD = 16 << 20
MAX_ENVIRON = 1 << 20
MAX_HEADER_BLOCK = 65535
MAX_SLOTS = 256
PAGE_SIZE = 4096

HEADER = Struct("<BBHI")  # type, flags, aux, length
REQUEST_HEAD = Struct("<BBHIQI")  # HEADER, number, length of the environ block
RESPONSE_HEAD = Struct("<BBHIHH")  # HEADER, length of the header block, echo
WITHDRAWN_FRAME = Struct("<BBHIQ")  # HEADER, number

# type: (name, flags it may have, aux has a meaning, least length, greatest length)
_FRAMES = {
    REQUEST: ("REQUEST", FLAG_LAST, True, 12, MAX_PAYLOAD),
    BODY: ("BODY", FLAG_LAST | FLAG_CUT, False, 0, MAX_PAYLOAD),
    GREETING: ("GREETING", 0, True, 0, 0),
    RESPONSE: ("RESPONSE", FLAG_LAST | FLAG_FAILED, True, 4, MAX_PAYLOAD),
    DATA: ("DATA", FLAG_LAST, False, 0, MAX_PAYLOAD),
    CUT: ("CUT", FLAG_FAILED, True, 0, 0),
    WITHDRAWN: ("WITHDRAWN", 0, False, 8, 8),
}


class ProtocolError(Exception):
    """The other side broke the protocol: its connection is of no further use."""


def parse_header(buffer, offset=0):
    """Returns type, flags, aux and length of the frame whose header is at offset.

    Refuses what no peer of version 1 sends in any state.
    """
    kind, flags, aux, length = HEADER.unpack_from(buffer, offset)
    if kind not in _FRAMES:
        raise ProtocolError("frame of unknown type %d" % kind)
    name, allowed, aux_used, least, greatest = _FRAMES[kind]
    if flags & ~allowed:
        raise ProtocolError("%s with flags %#x" % (name, flags))
    if flags & FLAG_CUT and not flags & FLAG_LAST:
        raise ProtocolError("BODY with CUT but not LAST")
    if aux and not aux_used:
        raise ProtocolError("%s with aux %d" % (name, aux))
    if kind == RESPONSE and not 200 <= aux <= 599:
        raise ProtocolError("RESPONSE with status %d, want 200 to 599" % aux)
    if not least <= length <= greatest:
        raise ProtocolError("%s of %d bytes, want %d to %d" % (name, length, least, greatest))
    return kind, flags, aux, length


def check_request(buffer, offset=0):
    """Refuses the frame whose header is at offset, unless it is a REQUEST."""
    kind, _, _, _ = parse_header(buffer, offset)
    if kind != REQUEST:
        raise ProtocolError("%s where a REQUEST was due" % _FRAMES[kind][0])


def parse_request(buffer, offset=0):
    """Returns flags, slot, length, number and environ length of the REQUEST at offset.

    The 20 bytes of its head are there; its environ block need not be.
    """
    kind, flags, slot, length, number, size = REQUEST_HEAD.unpack_from(buffer, offset)
    if kind != REQUEST or flags > FLAG_LAST or not 12 <= length <= MAX_PAYLOAD:
        check_request(buffer, offset)
    if size > MAX_ENVIRON or size + 12 > length:
        raise ProtocolError("REQUEST of %d bytes with an environ block of %d" % (length, size))
    if not number:
        raise ProtocolError("REQUEST with number 0")
    return flags, slot, length, number, size


def environ_from(block):
    """Returns the environ block, a bytes-like object, as a new dict."""
    strings = str(block, "latin-1").split("\0")
    if strings.pop():
        raise ProtocolError("environ block does not end with NUL")
    environ = dict(zip(strings[0::2], strings[1::2]))
    # Fewer entries than pairs: a name came twice, or the last has no value.
    if 2 * len(environ) != len(strings) or "" in environ:
        raise ProtocolError("environ block of %d strings, %d different names%s" % (
            len(strings), len(environ), ", one of them empty" if "" in environ else ""))
    return environ
