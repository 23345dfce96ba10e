package protocol

import (
	"errors"
	"fmt"
	"strconv"
)

// Classes of bytes in a header block.
const (
	inToken = 1 << iota // RFC 9110 section 5.6.2
	inValue             // anything but control characters, TAB excepted
)

var byteClass = func() (class [256]uint8) {
	for c := range class {
		if c >= ' ' && c != 0x7f || c == '\t' {
			class[c] |= inValue
		}
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
			class[c] |= inToken
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		class[c] |= inToken
	}
	return class
}()

const (
	statusName = "Status"
	statusHead = "Status: NNN "
)

// CheckHeaderBlock reports, as an error that wraps ErrProtocol, where a
// RESPONSE's header block is not what PROTOCOL.md section 4 says. What it
// accepts can be handed to a web server as it is: it holds no line that a
// worker's application did not set as one. It allocates only to complain.
func CheckHeaderBlock(block []byte, status uint16) error {
	if len(block) > MaxHeaderBlock {
		return fmt.Errorf("%w: header block of %d bytes, at most %d", ErrProtocol, len(block), MaxHeaderBlock)
	}
	if len(block) < len(statusHead) || string(block[:8]) != "Status: " || block[11] != ' ' {
		return fmt.Errorf("%w: header block begins %.40q, want \"Status: CODE REASON\"", ErrProtocol, block)
	}
	if s := statusDigits(status); [3]byte(block[8:11]) != s {
		return fmt.Errorf("%w: header block begins %.40q, but the frame says %d", ErrProtocol, block, status)
	}
	at := len(statusHead)
	for {
		// Here at stands in a line's value.
		for at < len(block) && byteClass[block[at]]&inValue != 0 {
			at++
		}
		if at+1 >= len(block) || block[at] != '\r' || block[at+1] != '\n' {
			return headerError(block, at, "in a line's value")
		}
		at += 2
		// And here at a line's beginning.
		name := at
		for at < len(block) && byteClass[block[at]]&inToken != 0 {
			at++
		}
		if at+1 >= len(block) {
			return headerError(block, at, "want another line, or an empty one at the end")
		}
		if at == name {
			if block[at] != '\r' || block[at+1] != '\n' {
				return headerError(block, at, "at the beginning of a line")
			}
			if at += 2; at != len(block) {
				return headerError(block, at, "behind the empty line")
			}
			return nil
		}
		if block[at] != ':' || block[at+1] != ' ' {
			return headerError(block, at, "behind a name, want \": \"")
		}
		if isStatus(block[name:at]) {
			return headerError(block, name, "a second Status")
		}
		at += 2
	}
}

func headerError(block []byte, at int, where string) error {
	if at >= len(block) {
		return fmt.Errorf("%w: header block ends at byte %d: %s", ErrProtocol, at, where)
	}
	line := at
	for line > 0 && at-line < 40 && block[line-1] != '\n' {
		line--
	}
	return fmt.Errorf("%w: header block: %q at byte %d, behind %q: %s", ErrProtocol, block[at:at+1], at, block[line:at], where)
}

func statusDigits(status uint16) [3]byte {
	return [3]byte{'0' + byte(status/100%10), '0' + byte(status/10%10), '0' + byte(status%10)}
}

func isStatus[S ~string | ~[]byte](name S) bool {
	if len(name) != len(statusName) {
		return false
	}
	for i := range len(statusName) {
		if name[i]|0x20 != statusName[i]|0x20 {
			return false
		}
	}
	return true
}

// ErrField is wrapped by errors that say why a status or a header field
// cannot stand in a header block.
var ErrField = errors.New("not fit for a header block")

// AppendStatus appends the first line of a header block. After it come fields
// (AppendField), then AppendEnd.
func AppendStatus(dst []byte, status int, reason string) ([]byte, error) {
	if status < 200 || status > 599 {
		return dst, fmt.Errorf("status %d %w: want 200 to 599", status, ErrField)
	}
	for i := range len(reason) {
		if byteClass[reason[i]]&inValue == 0 {
			return dst, fmt.Errorf("status reason %.60q %w: control character", reason, ErrField)
		}
	}
	dst = append(dst, statusName+": "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	return append(dst, "\r\n"...), nil
}

// IsToken reports whether name can be a header field's.
func IsToken(name string) bool {
	for i := range len(name) {
		if byteClass[name[i]]&inToken == 0 {
			return false
		}
	}
	return name != ""
}

// AppendField appends one header field, or an error that wraps ErrField and
// nothing.
func AppendField(dst []byte, name, value string) ([]byte, error) {
	if !IsToken(name) {
		return dst, fmt.Errorf("header name %.60q %w: not a token", name, ErrField)
	}
	if isStatus(name) {
		return dst, fmt.Errorf("header Status %w: the status is given apart", ErrField)
	}
	for i := range len(value) {
		if byteClass[value[i]]&inValue == 0 {
			return dst, fmt.Errorf("header %s: value %.60q %w: control character", name, value, ErrField)
		}
	}
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...), nil
}

// AppendEnd appends the line that ends a header block.
func AppendEnd(dst []byte) []byte { return append(dst, "\r\n"...) }
