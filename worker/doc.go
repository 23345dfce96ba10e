// Package worker hosts a Go application in a process that fpmd has started.
//
// An application is written to net/http, and hosted by HTTP, or to the gateway
// interface itself: an Application gets CGI's variables and a body, and returns
// a sequence of blocks. Both are middleware's to wrap. The program's main
// calls Serve, and its pool names the program:
//
//	[pool.api]
//	listen  = "/run/fpmd/api.sock"
//	command = ["/srv/api/api"]
//
// Serve runs as many exchanges at once as the pool's key threads says, each in
// a goroutine of its own. When the supervisor dies, the kernel kills the
// process; when it asks for it by SIGTERM, Serve finishes what has begun and returns.
//
// Standard output and error are lines of the supervisor's log. A panic costs
// its own request and no other.
package worker
