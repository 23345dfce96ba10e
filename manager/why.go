package manager

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A Story is what is known of one worker. Its JSON is for programs: names are not changed, only added.
type Story struct {
	Pool       string        `json:"pool"`
	Worker     int           `json:"worker"`
	PID        int           `json:"pid,omitempty"`
	Generation int           `json:"generation"`
	Child      int           `json:"child,omitempty"` // the process that was asked for, which the worker, or a child of it, has started
	Now        *WorkerStatus `json:"now,omitempty"`   // none: it is gone
	Events     []Event       `json:"events"`          // of it, who took its place, and what was asked for that it left for; the oldest first
	Since      *time.Time    `json:"since,omitempty"` // its events are kept from then on; none: all of them
}

// Why tells of the worker that has the process pid, or had it last; where it is a process that a worker has
// started, of that one.
func (m *Manager) Why(pid int) (Story, error) {
	all := m.kept()
	if id := m.workerOf(pid, nil); id > 0 {
		return m.story(id, all), nil
	}
	for _, of := range relatives(pid) {
		if id := m.workerOf(of, nil); id > 0 {
			s := m.story(id, all)
			s.Child = pid
			return s, nil
		}
	}
	if id := m.workerOf(pid, all); id > 0 { // only now: the system may have given the number to another meanwhile
		return m.story(id, all), nil
	}
	return Story{}, fmt.Errorf("no worker has the pid %d, and none is known to have had it: %s", pid, m.memory())
}

// WhyWorker is Why for the number of a worker.
func (m *Manager) WhyWorker(id int) (Story, error) {
	all := m.kept()
	s := m.story(id, all)
	if s.Now == nil && len(s.Events) == 0 {
		return s, fmt.Errorf("there is no worker %d, and none is known to have been: %s", id, m.memory())
	}
	return s, nil
}

// memory says how far back is known what happened.
func (m *Manager) memory() string {
	last := m.events.whole()
	if last.IsZero() {
		return "all is known since fpmd was started, " + m.since.Format(time.DateTime)
	}
	return "all is known since " + last.Format(time.DateTime)
}

// kept is all events that are.
func (m *Manager) kept() (all []Event) {
	f := m.events.follow(time.Time{}, nil)
	for {
		events, _ := f.Next()
		if len(events) == 0 {
			return all
		}
		all = append(all, events...)
	}
}

// workerOf is the number of the worker that has the process pid, or had it last as far as events know; 0: none.
func (m *Manager) workerOf(pid int, events []Event) int {
	for _, p := range m.andLeaving() {
		for _, w := range p.workersOf(nil) {
			p.mu.Lock()
			proc, id := w.proc, w.id
			p.mu.Unlock()
			if proc != nil && proc.pid == pid {
				return id
			}
		}
	}
	for _, e := range slices.Backward(events) {
		if e.PID == pid && e.Worker > 0 {
			return e.Worker
		}
	}
	return 0
}

// story picks from all events those that tell of worker id.
func (m *Manager) story(id int, all []Event) Story {
	s := Story{Worker: id, Events: []Event{}}
	for _, e := range all {
		if e.Worker == id {
			s.Pool = e.Pool
			s.Generation = max(s.Generation, e.Generation)
			s.PID = max(s.PID, e.PID)
		}
	}
	for _, p := range m.andLeaving() {
		for _, w := range p.status().Workers {
			if w.ID == id {
				s.Pool, s.Generation, s.PID, s.Now = p.name, w.Generation, w.PID, &w
			}
		}
	}
	orders := map[string][]Event{} // what somebody has asked for last, by the cause for which workers leave then
	for _, e := range all {
		switch {
		case e.Kind == EventReloadBegin:
			orders[causeReload], orders[causeRemoved] = []Event{e}, []Event{e}
		case e.Kind == EventGeneration && e.Pool == s.Pool:
			orders[causeReload] = append(orders[causeReload], e)
		case e.Kind == EventRollback && e.Pool == s.Pool:
			orders[causeRollback] = []Event{e}
		case e.Kind == EventScale && e.Pool == s.Pool:
			orders[causeScale] = []Event{e}
		case e.Kind == EventStop:
			orders[causeStop] = []Event{e}
		case e.Worker == id:
			if e.Kind == EventRetire {
				s.Events = append(s.Events, orders[e.Cause]...)
			}
			s.Events = append(s.Events, e)
		case e.Kind == EventSpawn && e.Replaces == id:
			s.Events = append(s.Events, e)
		}
	}
	slices.SortStableFunc(s.Events, func(a, b Event) int { return int(int64(a.Seq) - int64(b.Seq)) })
	if i := slices.IndexFunc(s.Events, func(e Event) bool { return e.Worker == id }); i < 0 || s.Events[i].Kind != EventSpawn {
		if since := m.events.reaches(s.Pool); !since.IsZero() {
			s.Since = &since
		}
	}
	return s
}

// relatives is the leader of the process group of pid, then its parents, as far as they can be seen.
func relatives(pid int) (pids []int) {
	if group, err := unix.Getpgid(pid); err == nil {
		pids = append(pids, group)
	}
	const generations = 64
	for range generations {
		parent, err := parentOf(procDir(pid))
		if err != nil || parent <= 1 {
			break
		}
		pids = append(pids, parent)
		pid = parent
	}
	return pids
}

// parentOf is the parent of the process whose folder in /proc is dir.
func parentOf(dir string) (parent int, err error) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, err
	}
	var state string
	rest := stat[bytes.LastIndexByte(stat, ')')+1:] // behind the name, which may have any character
	if _, err := fmt.Sscan(string(rest), &state, &parent); err != nil {
		return 0, errors.Join(fmt.Errorf("%s/stat", dir), err)
	}
	return parent, nil
}
