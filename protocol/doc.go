// Package protocol is one exchange between the fpmd supervisor and a worker:
// an environ and a body one way, a status, a header block and a body the
// other. PROTOCOL.md describes it byte by byte; this package is both ends of
// it in Go, and knows neither FastCGI nor what a pool is.
//
// frame.go is the wire, environ.go the environ block, page.go the memory
// that settles what began, slot.go the supervisor's end of one connection,
// worker.go the worker's end, handshake.go how a worker says that it is ready.
//
// The other side is never trusted: whatever breaks the protocol ends the
// connection with an error that wraps ErrProtocol.
package protocol
