package fcgi

import (
	"encoding/binary"
	"errors"
)

// ErrMalformedParams says that a stream of name-value pairs (section 3.4)
// ends in the middle of a pair.
var ErrMalformedParams = errors.New("name-value pairs end inside a pair")

// NextParam takes the first pair off b, a complete stream of name-value pairs.
// name and value are parts of b. Called on what is left until that is empty,
// it visits each pair; on a stream that passed CheckParams it never fails.
func NextParam(b []byte) (name, value, rest []byte, err error) {
	if len(b) >= 2 && b[0]|b[1] < 0x80 { // both lengths short: nearly always
		n, v := int(b[0]), int(b[1])
		if len(b) < 2+n+v {
			return nil, nil, nil, ErrMalformedParams
		}
		return b[2 : 2+n : 2+n], b[2+n : 2+n+v : 2+n+v], b[2+n+v:], nil
	}
	n, b, err := nextLength(b)
	if err != nil {
		return nil, nil, nil, err
	}
	v, b, err := nextLength(b)
	if err != nil {
		return nil, nil, nil, err
	}
	// In 64 bits: two lengths of 2^31-1 must not wrap where int has 32.
	if uint64(n)+uint64(v) > uint64(len(b)) {
		return nil, nil, nil, ErrMalformedParams
	}
	return b[:n:n], b[n : n+v : n+v], b[n+v:], nil
}

func nextLength(b []byte) (n uint32, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, ErrMalformedParams
	}
	if b[0] < 0x80 {
		return uint32(b[0]), b[1:], nil
	}
	if len(b) < 4 {
		return 0, nil, ErrMalformedParams
	}
	return binary.BigEndian.Uint32(b) &^ (1 << 31), b[4:], nil
}

// CheckParams reports ErrMalformedParams unless b is whole pairs.
func CheckParams(b []byte) error {
	for len(b) > 0 {
		var err error
		if _, _, b, err = NextParam(b); err != nil {
			return err
		}
	}
	return nil
}

// AppendParam appends one pair to a stream of them.
func AppendParam[S ~string | ~[]byte](dst []byte, name, value S) []byte {
	dst = appendLength(dst, len(name))
	dst = appendLength(dst, len(value))
	dst = append(dst, name...)
	return append(dst, value...)
}

func appendLength(dst []byte, n int) []byte {
	if n < 0x80 {
		return append(dst, byte(n))
	}
	return binary.BigEndian.AppendUint32(dst, uint32(n)|1<<31)
}
