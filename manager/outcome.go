package manager

import (
	"net/http"
	"strconv"
)

// An outcome is how a request ended, in the one list that there is. It is in
// the access log of every request, and in the header Fpmd-Outcome of every
// answer that fpmd makes itself; an application's answer is not altered. Of
// appError it is the workers' hosts that write the answer, in the same words.
type outcome uint8

const (
	ok           outcome = iota // the application answered
	appError                    // the application failed; its worker answered, or cut the answer
	timedOut                    // no answer within request_timeout
	queueFull                   // queue_size requests were waiting already
	queueTimeout                // no slot came free within queue_timeout
	clientGone                  // the client left before the answer was complete
	workerDied                  // the worker died with the request begun
	bootFailed                  // the pool has no worker that came up
	badRequest                  // the request can't be made into an environ
	tooLarge                    // more parameters than max_environ
	slowClient                  // the request did not arrive, or the answer was not taken, in client_timeout
	badAnswer                   // the worker broke the exchange protocol
	stopping                    // fpmd stops
)

var outcomes = [...]struct {
	name   string
	status int    // of the answer; for ok and appError the worker has its own
	cause  string // where nothing more is known of a request
}{
	ok:           {"ok", http.StatusOK, ""},
	appError:     {"app_error", http.StatusInternalServerError, "the application failed"},
	timedOut:     {"timeout", http.StatusGatewayTimeout, ""},
	queueFull:    {"queue_full", http.StatusServiceUnavailable, "queue_size requests wait already"},
	queueTimeout: {"queue_timeout", http.StatusServiceUnavailable, "no worker came free within queue_timeout"},
	clientGone:   {"client_gone", 499, ""}, // nginx's number for it, in the log only
	workerDied:   {"worker_died", http.StatusBadGateway, ""},
	bootFailed:   {"boot_failed", http.StatusServiceUnavailable, "no worker of the pool comes up"},
	badRequest:   {"bad_request", http.StatusBadRequest, ""},
	tooLarge:     {"too_large", http.StatusRequestEntityTooLarge, ""},
	slowClient:   {"slow_client", http.StatusRequestTimeout, ""},
	badAnswer:    {"bad_answer", http.StatusBadGateway, ""},
	stopping:     {"stopping", http.StatusServiceUnavailable, "fpmd stops, or the pool was removed"},
}

func (o outcome) String() string { return outcomes[o].name }
func (o outcome) status() int    { return outcomes[o].status }

// appendAnswer appends the whole answer that the web server gets for o: the
// header block and, unless head, a page of one line, which is body bytes long.
func (o outcome) appendAnswer(dst []byte, id string, head bool) (_ []byte, body int64) {
	status := o.status()
	page := strconv.Itoa(status) + " " + http.StatusText(status) + ": " + o.String() + "\n"
	dst = append(dst, "Status: "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(status)...)
	dst = append(dst, "\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: "...)
	dst = strconv.AppendInt(dst, int64(len(page)), 10)
	if status == http.StatusServiceUnavailable {
		dst = append(dst, "\r\nRetry-After: 1"...)
	}
	dst = append(dst, "\r\nFpmd-Outcome: "...)
	dst = append(dst, o.String()...)
	dst = append(dst, "\r\nFpmd-Request-Id: "...)
	dst = append(dst, id...)
	dst = append(dst, "\r\n\r\n"...)
	if head {
		return dst, 0
	}
	return append(dst, page...), int64(len(page))
}
