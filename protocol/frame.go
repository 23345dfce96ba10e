package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the only version of the exchange protocol so far.
const Version = 1

// A FrameType says what a frame carries (PROTOCOL.md section 4).
type FrameType uint8

// The frame types. Those below 16 go to the worker, the others to the supervisor.
const (
	Request   FrameType = 1
	Body      FrameType = 2
	Greeting  FrameType = 16
	Response  FrameType = 17
	Data      FrameType = 18
	Cut       FrameType = 19
	Withdrawn FrameType = 20
)

func (t FrameType) String() string {
	switch t {
	case Request:
		return "REQUEST"
	case Body:
		return "BODY"
	case Greeting:
		return "GREETING"
	case Response:
		return "RESPONSE"
	case Data:
		return "DATA"
	case Cut:
		return "CUT"
	case Withdrawn:
		return "WITHDRAWN"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Flags of a frame.
const (
	FlagLast   = 1 // the body, or the answer, ends with this frame
	FlagCut    = 2 // with FlagLast on Body: it ended early, because the answer is complete
	FlagFailed = 4 // the application failed
	flagsKnown = FlagLast | FlagCut | FlagFailed
)

// Sizes and limits, in bytes.
const (
	HeaderLen      = 8         // of every frame
	RequestFixed   = 12        // number and environ length, at the head of a Request's payload
	ResponseFixed  = 4         // length of the header block and echo, at the head of a Response's payload
	MaxPayload     = 16 << 20  // of one frame
	MaxEnviron     = 1 << 20   // of the environ block
	MaxHeaderBlock = 1<<16 - 1 // of the header block: what one FastCGI record can carry
	MaxSlots       = 256       // of one worker: what the page holds
	MaxHandshake   = 256       // of the handshake line
	PageSize       = 4096      // of the shared page
)

// ErrProtocol is wrapped by every error that says that the other side broke
// the protocol. The connection is of no further use.
var ErrProtocol = errors.New("exchange protocol broken")

// A Header is the fixed head of a frame.
type Header struct {
	Type   FrameType
	Flags  uint8
	Aux    uint16
	Length uint32
}

// Echo is what a Response or a Cut repeats of the number of the exchange that
// it answers: an answer can't be taken for another's.
func Echo(number uint64) uint16 { return uint16(number) }

// Last reports whether the body or the answer ends with this frame.
func (h Header) Last() bool { return h.Flags&FlagLast != 0 }

// PutHeader writes h to the first HeaderLen bytes of b.
func PutHeader(b []byte, h Header) {
	_ = b[HeaderLen-1]
	b[0] = byte(h.Type)
	b[1] = h.Flags
	binary.LittleEndian.PutUint16(b[2:], h.Aux)
	binary.LittleEndian.PutUint32(b[4:], h.Length)
}

// ParseHeader reads the header at the front of b, which holds at least
// HeaderLen bytes, and refuses what no version 1 peer sends in any state:
// unknown types and flags, flags and lengths that do not go with the type.
func ParseHeader(b []byte) (Header, error) {
	_ = b[HeaderLen-1]
	h := Header{
		Type:   FrameType(b[0]),
		Flags:  b[1],
		Aux:    binary.LittleEndian.Uint16(b[2:]),
		Length: binary.LittleEndian.Uint32(b[4:]),
	}
	if h.Length > MaxPayload {
		return h, fmt.Errorf("%w: %v of %d bytes, at most %d", ErrProtocol, h.Type, h.Length, MaxPayload)
	}
	var flags uint8
	low, high := uint32(0), uint32(MaxPayload)
	auxUsed := false
	switch h.Type {
	case Request:
		flags, low, auxUsed = FlagLast, RequestFixed, true
	case Body:
		flags = FlagLast | FlagCut
		if h.Flags&FlagCut != 0 && h.Flags&FlagLast == 0 {
			return h, fmt.Errorf("%w: BODY with CUT but not LAST", ErrProtocol)
		}
	case Greeting:
		high, auxUsed = 0, true
	case Response:
		flags, low, auxUsed = FlagLast|FlagFailed, ResponseFixed, true
		if h.Aux < 200 || h.Aux > 599 {
			return h, fmt.Errorf("%w: RESPONSE with status %d, want 200 to 599", ErrProtocol, h.Aux)
		}
	case Data:
		flags = FlagLast
	case Cut:
		flags, high, auxUsed = FlagFailed, 0, true
	case Withdrawn:
		low, high = 8, 8
	default:
		return h, fmt.Errorf("%w: frame of unknown %v", ErrProtocol, h.Type)
	}
	if h.Flags&^flags != 0 {
		return h, fmt.Errorf("%w: %v with flags %#x", ErrProtocol, h.Type, h.Flags)
	}
	if !auxUsed && h.Aux != 0 {
		return h, fmt.Errorf("%w: %v with aux %d", ErrProtocol, h.Type, h.Aux)
	}
	if h.Length < low || h.Length > high {
		return h, fmt.Errorf("%w: %v of %d bytes, want %d to %d", ErrProtocol, h.Type, h.Length, low, high)
	}
	return h, nil
}
