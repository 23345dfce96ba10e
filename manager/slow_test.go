package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"fpmd/protocol"
)

// An exchange is told of once, when it has had its worker for the limit, and the time that
// its client was waited for, in whichever direction, does not count.
func TestStopwatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 4 * time.Second
		k := new(stopwatch)
		look := func(when string, wantHalf, wantSlow bool, wantAgain time.Duration) {
			t.Helper()
			slow, half, again := k.look(time.Now(), limit)
			if (slow != nil) != wantSlow || half != wantHalf || again != wantAgain {
				t.Errorf("%s: slow %v, half of it over %v, look again in %v; want %v, %v, %v", when, slow != nil, half, again, wantSlow, wantHalf, wantAgain)
			}
		}
		x := &exchange{env: environ{id: "a", method: []byte("GET"), uri: []byte("/")}, body: []byte("xy")}
		look("nobody there", false, false, 2*time.Second)
		k.start(x, time.Now())
		time.Sleep(time.Second)
		look("at 1 s", false, false, time.Second)
		time.Sleep(time.Second)
		look("at 2 s", true, false, 2*time.Second)
		k.measured(new(usage))
		look("measured", false, false, 2*time.Second)
		k.pause() // it sends
		time.Sleep(time.Minute)
		look("while it sends", false, false, 2*time.Second)
		k.pause() // and takes
		k.resume()
		time.Sleep(time.Minute)
		look("when it has sent, and takes", false, false, 2*time.Second)
		k.sent(3, true)
		k.resume()
		time.Sleep(time.Second)
		k.answered(protocol.Answer{Status: 201, Body: 7})
		look("at 3 s", false, false, time.Second)
		time.Sleep(time.Second)
		slow, _, _ := k.look(time.Now(), limit)
		if slow == nil || slow.ran != limit || slow.body != "5 bytes" || slow.answer != "status 201, 7 bytes so far" || slow.before == nil {
			t.Errorf("at 4 s: %+v", slow)
		}
		time.Sleep(limit)
		look("told", false, false, 2*time.Second)
		k.stop()
		k.start(x, time.Now())
		time.Sleep(limit)
		if slow, _, _ = k.look(time.Now(), limit); slow == nil || slow.body != "2 bytes, more is to come" || slow.answer != "not begun" || slow.before != nil {
			t.Errorf("the next one: %+v", slow)
		}
		k.stop()
		k.start(x, time.Now())
		k.stop()
		time.Sleep(limit)
		look("ended", false, false, 2*time.Second)
	})
}

// Addresses of /proc/net are read on this machine's order of bytes.
func TestParseHexAddr(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000001000000:0035": "[::1]:53",
		"0000000000000000FFFF00000100007F:1F90": "127.0.0.1:8080",
		"0100007F":                              "",
		"010000:1F90":                           "",
		"xx00007F:1F90":                         "",
	} {
		got := ""
		if a, ok := parseHexAddr(in); ok {
			got = a.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
