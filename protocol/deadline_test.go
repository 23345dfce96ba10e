package protocol

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// A body's sender moves the deadline while another goroutine waits for the
// answer. Neither an Abort nor a Lose just before it may be forgotten for that.
func TestDeadlineDoesNotUndoAnEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*Slot)
		want error
	}{
		"abort": {(*Slot).Abort, ErrAborted},
		"lose":  {(*Slot).Lose, ErrLost},
	} {
		t.Run(name, func(t *testing.T) {
			for range 200 {
				s, _ := pair(t)
				s.Send(request(), nil, false, 1)
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					c.end(s)
					s.SetDeadline(time.Now().Add(time.Minute))
				})
				wg.Go(func() { s.SetDeadline(time.Now().Add(2 * time.Minute)) })
				if _, err := s.Receive(new(Buffer), records{}); !errors.Is(err, c.want) {
					t.Fatalf("Receive: %v, want %v", err, c.want)
				}
				wg.Wait()
				s.Close()
			}
		})
	}
}

// A deadline is one of the monotonic clock from one end to the other: no step of
// the wall clock moves it.
func TestDeadlineIsMonotonic(t *testing.T) {
	s, _ := pair(t)
	for _, want := range []time.Time{time.Now().Add(time.Minute), time.Now().Add(-time.Minute)} {
		s.SetDeadline(want)
		if got := s.until(); !got.Equal(want) || !strings.Contains(got.String(), " m=") {
			t.Errorf("%v, want %v", got, want)
		}
	}
	s.SetDeadline(time.Time{})
	if got := s.until(); !got.IsZero() {
		t.Errorf("%v, want none", got)
	}
}
