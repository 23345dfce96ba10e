package manager

import (
	"cmp"
	"slices"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// crew is n workers of two slots, of which the first busy have something to do; the others
// have been idle for as many seconds as they are from the end, and one more.
func crew(n, busy int) (ms []member) {
	for i := range n {
		m := member{w: &worker{id: i}, slots: 2, free: 2, idle: noon.Add(-time.Duration(n-i) * time.Second)}
		if i >= n-busy {
			m.free, m.idle = 1, noon
		}
		ms = append(ms, m)
	}
	return ms
}

func ids(leave []departure) (ids []int) {
	for _, l := range leave {
		ids = append(ids, l.w.id)
	}
	return ids
}

// What a steward does next, for each kind of pool.
func TestDecide(t *testing.T) {
	static := &PoolConfig{PM: Static}
	dynamic := &PoolConfig{PM: Dynamic, StartWorkers: 3, MinSpareWorkers: 2, MaxSpareWorkers: 6, IdleTimeout: 2 * time.Second}
	few := &PoolConfig{PM: Dynamic, StartWorkers: 3, MaxSpareWorkers: 1, IdleTimeout: time.Second}
	ondemand := &PoolConfig{PM: OnDemand, IdleTimeout: 2 * time.Second}
	longAgo, justNow := noon.Add(-time.Hour), noon.Add(-time.Second/2)
	due := func(ms []member, which int, at time.Time) []member {
		ms[which].until = at
		return ms
	}
	young := func(ms []member, which int) []member {
		ms[which].trust = noon.Add(time.Second / 2)
		return ms
	}
	for name, tt := range map[string]struct {
		cfg     *PoolConfig
		h       headcount
		start   int
		leave   []int
		replace int           // id, -1: none
		again   time.Duration // -1: never
	}{
		"static, at first":               {static, headcount{size: 4}, 4, nil, -1, -1},
		"static, at first, not proven":   {static, headcount{size: 4, unproven: true}, 1, nil, -1, -1},
		"static, not proven, one tried":  {static, headcount{size: 4, launching: 1, unproven: true}, 0, nil, -1, -1},
		"static, some on their way":      {static, headcount{size: 4, launching: 3, ready: crew(1, 1), batchAt: justNow}, 0, nil, -1, -1},
		"static, one has died":           {static, headcount{size: 4, ready: crew(3, 3), batchAt: longAgo}, 1, nil, -1, -1},
		"static, one has died, failing":  {static, headcount{size: 4, ready: crew(3, 3), notBefore: noon.Add(time.Minute)}, 0, nil, -1, time.Minute},
		"static, whole":                  {static, headcount{size: 4, ready: crew(4, 4), queued: 100, batchAt: longAgo}, 0, nil, -1, -1},
		"static, two too many":           {static, headcount{size: 2, ready: crew(4, 1)}, 0, []int{0, 1}, -1, -1},
		"static, too many, all busy":     {static, headcount{size: 2, ready: crew(3, 3)}, 0, []int{0}, -1, -1},
		"static, too many on their way":  {static, headcount{size: 1, launching: 2, ready: crew(1, 0)}, 0, nil, -1, -1},
		"static, too many, more to come": {static, headcount{size: 1, launching: 2, ready: crew(3, 0)}, 0, []int{0, 1}, -1, -1},
		"static, whole, one is replaced": {static, headcount{size: 2, waiting: true, ready: crew(3, 3)}, 0, nil, -1, -1},
		"static, too many, one replaced": {static, headcount{size: 2, waiting: true, ready: crew(4, 3)}, 0, []int{0}, -1, -1},
		"static, one is due":             {static, headcount{size: 2, ready: due(crew(2, 2), 1, longAgo)}, 1, nil, 1, -1},
		"static, two are due":            {static, headcount{size: 2, ready: due(due(crew(2, 2), 1, longAgo), 0, longAgo)}, 1, nil, 0, -1},
		"static, one will be due":        {static, headcount{size: 2, ready: due(crew(2, 2), 1, noon.Add(time.Hour))}, 0, nil, -1, time.Hour},
		"static, due, but another comes": {static, headcount{size: 2, launching: 1, ready: due(crew(1, 1), 0, longAgo)}, 0, nil, -1, -1},
		"static, due, but one is replaced": {
			static,
			headcount{size: 2, launching: 1, waiting: true, ready: due(crew(2, 2), 0, longAgo)},
			0, nil, -1, -1,
		},
		"static, due, but failing": {
			static,
			headcount{size: 2, ready: due(crew(2, 2), 0, longAgo), notBefore: noon.Add(time.Minute)},
			0, nil, -1, time.Minute,
		},
		"static, due, one of before drains": {static, headcount{size: 2, draining: true, ready: due(crew(2, 2), 0, longAgo)}, 0, nil, -1, -1},
		"static, due, another has to prove itself": {
			static,
			headcount{size: 2, ready: young(due(crew(2, 2), 0, longAgo), 1)},
			0, nil, -1, time.Second / 2,
		},
		"static, more than may be on their way":  {static, headcount{size: 20}, 8, nil, -1, -1},
		"static, one died while it was replaced": {static, headcount{size: 2, launching: 1, ready: crew(1, 1)}, 0, nil, -1, -1},

		"dynamic, at first":              {dynamic, headcount{size: 9, fresh: true}, 3, nil, -1, batchEvery},
		"dynamic, at first, and limited": {dynamic, headcount{size: 2, fresh: true}, 2, nil, -1, batchEvery},
		"dynamic, at first, not proven":  {dynamic, headcount{size: 9, fresh: true, unproven: true}, 1, nil, -1, batchEvery},
		"dynamic, at first, then proven": {dynamic, headcount{size: 9, fresh: true, ready: crew(1, 0), batchAt: justNow, batch: 1}, 2, nil, -1, batchEvery},
		"dynamic, at first, one has died": {
			dynamic,
			headcount{size: 9, fresh: true, launching: 1, ready: crew(1, 0), batchAt: justNow, batch: 1},
			1, nil, -1, batchEvery,
		},
		"dynamic, at first, idle ones stay": {few, headcount{size: 9, fresh: true, launching: 1, ready: crew(2, 0), batchAt: longAgo}, 0, nil, -1, batchEvery},
		"dynamic, enough are spare":         {dynamic, headcount{size: 9, ready: crew(3, 2), batchAt: longAgo}, 0, nil, -1, batchEvery},
		"dynamic, too few are spare":        {dynamic, headcount{size: 9, ready: crew(1, 1), batchAt: longAgo}, 1, nil, -1, batchEvery},
		"dynamic, many wait":                {dynamic, headcount{size: 9, ready: crew(1, 1), queued: 30, batchAt: longAgo}, 1, nil, -1, batchEvery},
		"dynamic, many wait still":          {dynamic, headcount{size: 9, ready: crew(2, 2), queued: 30, batchAt: justNow, batch: 1}, 2, nil, -1, batchEvery},
		"dynamic, many wait, some come":     {dynamic, headcount{size: 9, launching: 1, ready: crew(2, 2), queued: 30, batchAt: justNow, batch: 1}, 0, nil, -1, batchEvery / 2},
		"dynamic, many wait, some come late": {
			dynamic,
			headcount{size: 9, launching: 2, ready: crew(2, 2), queued: 30, batchAt: noon.Add(-batchEvery), batch: 2},
			4, nil, -1, batchEvery,
		},
		"dynamic, no more than there may be": {dynamic, headcount{size: 9, ready: crew(8, 8), queued: 30, batchAt: justNow, batch: 4}, 1, nil, -1, batchEvery},
		"dynamic, full":                      {dynamic, headcount{size: 9, ready: crew(9, 9), queued: 30, batchAt: justNow, batch: 4}, 0, nil, -1, batchEvery},
		"dynamic, too many are spare":        {dynamic, headcount{size: 9, ready: crew(6, 0), batchAt: longAgo}, 0, []int{0}, -1, batchEvery},
		"dynamic, and one has just left":     {dynamic, headcount{size: 9, ready: crew(6, 0), batchAt: longAgo, shrunkAt: justNow}, 0, nil, -1, batchEvery / 2},
		"dynamic, all are gone and fail":     {dynamic, headcount{size: 9, failing: true, batchAt: longAgo, batch: 1}, 1, nil, -1, batchEvery},

		"ondemand, at first":        {ondemand, headcount{size: 9, fresh: true}, 1, nil, -1, batchEvery},
		"ondemand, at first, again": {ondemand, headcount{size: 9, fresh: true, batchAt: justNow, batch: 1}, 1, nil, -1, batchEvery},
		"ondemand, nobody asks":     {ondemand, headcount{size: 9, batchAt: longAgo}, 0, nil, -1, -1},
		"ondemand, somebody asks":   {ondemand, headcount{size: 9, queued: 1, batchAt: longAgo}, 1, nil, -1, batchEvery},
		"ondemand, and it comes":    {ondemand, headcount{size: 9, queued: 1, launching: 1, batchAt: justNow, batch: 1}, 0, nil, -1, batchEvery},
		"ondemand, and it comes late": {
			ondemand,
			headcount{size: 9, queued: 5, launching: 1, batchAt: noon.Add(-batchEvery), batch: 1},
			2, nil, -1, batchEvery,
		},
		"ondemand, it fails":              {ondemand, headcount{size: 9, failing: true, batchAt: longAgo}, 1, nil, -1, batchEvery},
		"ondemand, it fails, and waits":   {ondemand, headcount{size: 9, failing: true, batchAt: longAgo, notBefore: noon.Add(time.Second)}, 0, nil, -1, time.Second},
		"ondemand, some have been idle":   {ondemand, headcount{size: 9, ready: crew(4, 1), batchAt: longAgo}, 0, []int{0, 1, 2}, -1, 2 * time.Second},
		"ondemand, one will have been":    {ondemand, headcount{size: 9, ready: crew(1, 0), batchAt: longAgo}, 0, nil, -1, time.Second},
		"ondemand, idle, but others wait": {ondemand, headcount{size: 1, ready: crew(1, 0), queued: 1, batchAt: longAgo}, 0, nil, -1, 2 * time.Second},
		"ondemand, due and idle":          {ondemand, headcount{size: 9, ready: due(crew(1, 0), 0, longAgo), batchAt: longAgo}, 0, []int{0}, -1, -1},
		"ondemand, due and busy":          {ondemand, headcount{size: 9, ready: due(crew(1, 1), 0, longAgo), batchAt: longAgo}, 1, nil, 0, 2 * time.Second},
		"ondemand, idle, will be due":     {ondemand, headcount{size: 9, ready: due(crew(1, 0), 0, noon.Add(time.Millisecond)), batchAt: longAgo}, 0, nil, -1, time.Millisecond},
		"ondemand, others need one":       {ondemand, headcount{limit: 9, size: 1, ready: crew(2, 1), batchAt: longAgo}, 0, []int{0}, -1, -1},
		"ondemand, no room, many wait":    {ondemand, headcount{limit: 9, size: 2, ready: crew(1, 1), queued: 9, batchAt: longAgo}, 0, nil, -1, batchEvery},
		"ondemand, room again":            {ondemand, headcount{limit: 9, size: 2, room: 1, ready: crew(1, 1), queued: 9, batchAt: longAgo}, 1, nil, -1, batchEvery},
		"ondemand, busy":                  {ondemand, headcount{size: 9, ready: crew(1, 1), batchAt: longAgo}, 0, nil, -1, 2 * time.Second},
	} {
		tt.h.now, tt.h.slots, tt.h.ahead = noon, 2, 8
		tt.h.limit = cmp.Or(tt.h.limit, tt.h.size)
		if tt.h.limit == tt.h.size {
			tt.h.room = tt.h.size // nobody else wants any
		}
		d := tt.h.decide(tt.cfg)
		replace, again := -1, time.Duration(-1)
		if d.replace != nil {
			replace = d.replace.id
		}
		if !d.again.IsZero() {
			again = d.again.Sub(noon)
		}
		if d.start != tt.start || !slices.Equal(ids(d.leave), tt.leave) || replace != tt.replace || again != tt.again {
			t.Errorf("%s: starts %d, %v leave, %d is replaced, looks again after %v; want %d, %v, %d, %v",
				name, d.start, ids(d.leave), replace, again, tt.start, tt.leave, tt.replace, tt.again)
		}
	}
}
