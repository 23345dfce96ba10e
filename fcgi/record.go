package fcgi

import (
	"encoding/binary"
	"fmt"
)

// A recordType is the type field of a record (FastCGI specification, section 8).
type recordType uint8

const (
	typeBeginRequest    recordType = 1
	typeAbortRequest    recordType = 2
	typeEndRequest      recordType = 3
	typeParams          recordType = 4
	typeStdin           recordType = 5
	typeStdout          recordType = 6
	typeStderr          recordType = 7
	typeData            recordType = 8
	typeGetValues       recordType = 9
	typeGetValuesResult recordType = 10
	typeUnknownType     recordType = 11
)

// A Role is what the web server asks of the application (section 6).
type Role uint16

// The roles. A request for RoleFilter, or for one that the specification does
// not know, is answered with UNKNOWN_ROLE and never reaches a Handler.
const (
	RoleResponder  Role = 1
	RoleAuthorizer Role = 2
	RoleFilter     Role = 3
)

// A ProtocolStatus is the protocol level's end of a request (section 5.5).
type ProtocolStatus uint8

// The ways a request ends.
const (
	StatusRequestComplete ProtocolStatus = 0
	StatusCantMultiplex   ProtocolStatus = 1
	StatusOverloaded      ProtocolStatus = 2
	StatusUnknownRole     ProtocolStatus = 3
)

const (
	version1 = 1
	flagKeep = 1 // FCGI_KEEP_CONN in BEGIN_REQUEST

	// HeaderLen is the size of a record's header, in bytes.
	HeaderLen = 8
	// MaxContent is the most that one record carries, in bytes.
	MaxContent = 1<<16 - 1
	// TrailerLen is what End and SendLast append: the empty STDOUT record that
	// ends the stream, and END_REQUEST.
	TrailerLen = HeaderLen + HeaderLen + 8
)

// A header is the head of a record (section 3.3).
type header struct {
	version uint8
	typ     recordType
	id      uint16
	length  uint16 // of the content
	padding uint8
}

func parseHeader(b *[HeaderLen]byte) header {
	return header{
		version: b[0],
		typ:     recordType(b[1]),
		id:      binary.BigEndian.Uint16(b[2:]),
		length:  binary.BigEndian.Uint16(b[4:]),
		padding: b[6],
	}
}

// putHeader writes the head of a record without padding to the first
// HeaderLen bytes of b. Alignment would cost a copy and no reader asks for it.
func putHeader(b []byte, typ recordType, id uint16, length int) {
	_ = b[HeaderLen-1]
	b[0] = version1
	b[1] = byte(typ)
	binary.BigEndian.PutUint16(b[2:], id)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
	b[6] = 0
	b[7] = 0
}

func appendHeader(dst []byte, typ recordType, id uint16, length int) []byte {
	var h [HeaderLen]byte
	putHeader(h[:], typ, id, length)
	return append(dst, h[:]...)
}

// appendRecord appends content, of any length, as records of type typ; an
// empty content makes one empty record, which ends a stream.
func appendRecord(dst []byte, typ recordType, id uint16, content []byte) []byte {
	for {
		n := min(len(content), MaxContent)
		dst = appendHeader(dst, typ, id, n)
		dst = append(dst, content[:n]...)
		if content = content[n:]; len(content) == 0 {
			return dst
		}
	}
}

func appendBegin(dst []byte, id uint16, role Role, keep bool) []byte {
	dst = appendHeader(dst, typeBeginRequest, id, 8)
	var flags byte
	if keep {
		flags = flagKeep
	}
	return append(dst, byte(role>>8), byte(role), flags, 0, 0, 0, 0, 0)
}

func appendEnd(dst []byte, id uint16, appStatus uint32, status ProtocolStatus) []byte {
	dst = appendHeader(dst, typeEndRequest, id, 8)
	dst = binary.BigEndian.AppendUint32(dst, appStatus)
	return append(dst, byte(status), 0, 0, 0)
}

func (t recordType) String() string {
	names := [...]string{
		typeBeginRequest: "BEGIN_REQUEST", typeAbortRequest: "ABORT_REQUEST", typeEndRequest: "END_REQUEST",
		typeParams: "PARAMS", typeStdin: "STDIN", typeStdout: "STDOUT", typeStderr: "STDERR", typeData: "DATA",
		typeGetValues: "GET_VALUES", typeGetValuesResult: "GET_VALUES_RESULT", typeUnknownType: "UNKNOWN_TYPE",
	}
	if int(t) < len(names) && names[t] != "" {
		return names[t]
	}
	return fmt.Sprintf("record type %d", uint8(t))
}
