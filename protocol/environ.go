package protocol

import (
	"bytes"
	"fmt"
	"strings"
)

// AppendPair appends one variable to an environ block. Neither name nor value
// may hold a NUL, which CheckEnviron could only see as another variable.
func AppendPair[S ~string | ~[]byte](dst []byte, name, value S) []byte {
	dst = append(dst, name...)
	dst = append(dst, 0)
	dst = append(dst, value...)
	return append(dst, 0)
}

// CheckEnviron reports, as an error that wraps ErrProtocol, what is wrong with
// an environ block: its size, a string without its NUL, a name without its
// value, an empty name. A name that comes twice is ParseEnviron's to find,
// which holds them all.
func CheckEnviron(block []byte) error {
	if len(block) > MaxEnviron {
		return fmt.Errorf("%w: environ of %d bytes, at most %d", ErrProtocol, len(block), MaxEnviron)
	}
	for at := 0; at < len(block); {
		name := bytes.IndexByte(block[at:], 0)
		if name == 0 {
			return fmt.Errorf("%w: environ: empty name at byte %d", ErrProtocol, at)
		}
		if name < 0 {
			return fmt.Errorf("%w: environ: no NUL behind byte %d", ErrProtocol, at)
		}
		value := bytes.IndexByte(block[at+name+1:], 0)
		if value < 0 {
			return fmt.Errorf("%w: environ: no value, or no NUL behind it, for %.40q", ErrProtocol, block[at:at+name])
		}
		at += name + 1 + value + 1
	}
	return nil
}

// ParseEnviron returns the variables of an environ block. The block is copied
// once, into one string that all names and values share: who keeps one of
// them keeps all.
func ParseEnviron(block []byte) (map[string]string, error) {
	if err := CheckEnviron(block); err != nil {
		return nil, err
	}
	rest := string(block)
	vars := make(map[string]string, strings.Count(rest, "\x00")/2)
	for pairs := 1; rest != ""; pairs++ {
		var name, value string
		name, rest, _ = strings.Cut(rest, "\x00")
		value, rest, _ = strings.Cut(rest, "\x00")
		if vars[name] = value; len(vars) != pairs {
			return nil, fmt.Errorf("%w: environ: %.40q comes twice", ErrProtocol, name)
		}
	}
	return vars, nil
}
