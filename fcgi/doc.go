// Package fcgi speaks FastCGI 1.0. Its server side reads what a web server
// sends and writes what answers it, in the roles Responder and Authorizer; its
// client side asks as a web server would, for tools and tests. It knows
// records, parameters and streams; what a worker is, and how long one may
// take, is its caller's concern.
//
// A client that is slow, and connections beyond what there may be, are kept
// within the bounds that the Server was given.
//
// record.go is the wire, params.go the name-value pairs, conn.go reads a
// connection, outbox.go writes to it, clock.go says who is slow, request.go is one request's streams,
// server.go accepts and stops, client.go asks.
//
// One goroutine reads a connection and owns what arrives on it; each request
// runs in a goroutine of its own, and any number of them write to the
// connection, whole records at a time. A peer that breaks the protocol loses
// the connection, with a log line that says what was wrong.
package fcgi
