package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// A Plan is what a reload of a configuration would do. Its JSON is for programs: names are
// not changed, only added.
type Plan struct {
	Refused []Change   `json:"refused"` // what takes a restart: with any, nothing is reloaded
	Changes []Change   `json:"changes"` // of [supervisor], that count at once
	Later   []Change   `json:"later"`   // what counts from the next start on
	Pools   []PoolPlan `json:"pools"`   // those of which something becomes, in order of their names
}

// A PoolPlan is what becomes of a pool. Where nothing changes, it is rolled to its present configuration, for its
// code may have.
type PoolPlan struct {
	Name        string   `json:"name"`
	Changes     []Change `json:"changes"`
	Added       bool     `json:"added"`       // there was none of this name
	Removed     bool     `json:"removed"`     // there is none any more, but for what it has accepted
	Rolled      bool     `json:"rolled"`      // new workers come, and the old ones leave
	Resized     bool     `json:"resized"`     // how many workers there are, or may be, is another number
	Rebound     bool     `json:"rebound"`     // it listens elsewhere, or with another owner, mode or backlog
	Connections bool     `json:"connections"` // who may connect, or what new connections get, changes
	Log         bool     `json:"log"`         // its access log is another, or there is none any more

	next *PoolConfig
}

// A Change is a key that has another value. Of env, it is the names of variables.
type Change struct {
	Key string `json:"key"`
	Old string `json:"old"`
	New string `json:"new"`

	name string // of the key, without its table
}

// ofFront reports whether c is of what a pool shows to the front.
func (c Change) ofFront() bool {
	return slices.Contains(listenOfPool, c.name) || slices.Contains(grantsOfPool, c.name) || slices.Contains(logOfPool, c.name)
}

func (c Change) String() string { return fmt.Sprintf("%s is now %s, not %s", c.Key, c.New, c.Old) }

// What a reload can't change yet: it refuses to, or leaves it for the next start.
var (
	fixedOfSupervisor = []string{"runtime_dir"}
	laterOfSupervisor = []string{"log", "log_level", "log_format", "procs", "control_group"}
	liveOfSupervisor  = []string{"max_workers"}
)

// A Reloading is which pools are rolled.
type Reloading struct {
	Pools   []string // their names; none: all
	Changed bool     // only those of which a key has changed
}

// Known refuses names that no pool has.
func (m *Manager) Known(pools []string) error {
	_, err := m.named(pools)
	return err
}

// Plan says what Reload would do now. It does not wait for one that is under way.
func (m *Manager) Plan(cfg *Config, r Reloading) (Plan, error) {
	plan := Plan{
		Refused: m.supervisorChanges(cfg, fixedOfSupervisor),
		Changes: m.supervisorChanges(cfg, liveOfSupervisor),
		Later:   m.supervisorChanges(cfg, laterOfSupervisor),
		Pools:   []PoolPlan{},
	}
	next := make(map[string]*PoolConfig)
	for _, p := range cfg.Pools {
		next[p.Name] = p
	}
	pools := m.pools.all() // once: a reload may change it meanwhile
	all := texts(pools, func(p *pool) string { return p.name })
	for _, p := range cfg.Pools {
		if poolNamed(pools, p.Name) == nil {
			all = append(all, p.Name)
		}
	}
	names := all
	if len(r.Pools) > 0 {
		names = slices.Compact(slices.Sorted(slices.Values(r.Pools)))
	}
	left := len(pools)
	for _, name := range names {
		p, change := poolNamed(pools, name), Change{Key: "pool." + name}
		switch {
		case p == nil && next[name] == nil:
			return plan, unknownPool(name, all)
		case p == nil:
			left++
			change.Old, change.New = "none", "there"
			plan.Pools = append(plan.Pools, PoolPlan{Name: name, Changes: []Change{change}, Added: true, next: next[name]})
			continue
		case next[name] == nil:
			left--
			change.Old, change.New = "there", "gone"
			plan.Pools = append(plan.Pools, PoolPlan{Name: name, Changes: []Change{change}, Removed: true})
			continue
		}
		changes := p.changes(next[name])
		if r.Changed && len(changes) == 0 {
			continue
		}
		wantsWorkers := func(c Change) bool { return !c.ofFront() && !slices.Contains(sizesOfPool, c.name) }
		plan.Pools = append(plan.Pools, PoolPlan{
			Name: name, Changes: changes, next: next[name],
			Rolled:      !r.Changed || slices.ContainsFunc(changes, wantsWorkers),
			Resized:     anyOf(changes, sizesOfPool),
			Rebound:     anyOf(changes, listenOfPool),
			Connections: anyOf(changes, grantsOfPool),
			Log:         anyOf(changes, logOfPool),
		})
	}
	if left == 0 { // the configuration has one, but it is not asked for
		return plan, fmt.Errorf("no pool would be left: want a reload of all, or of one of %s as well", strings.Join(slices.Sorted(maps.Keys(next)), ", "))
	}
	return plan, nil
}

// changes is what next has that p has not. What p shows to the front is as the last reload has left it, for a
// rollback does not change that.
func (p *pool) changes(next *PoolConfig) []Change {
	return slices.Concat(
		slices.DeleteFunc(changesOf(p.config(), next), Change.ofFront),
		slices.DeleteFunc(changesOf(p.front.Load(), next), func(c Change) bool { return !c.ofFront() }))
}

// anyOf reports whether changes has one of a key of these names.
func anyOf(changes []Change, names []string) bool {
	return slices.ContainsFunc(changes, func(c Change) bool { return slices.Contains(names, c.name) })
}

// changesOf is what there is in next that is not in old.
func changesOf(old, next *PoolConfig) []Change {
	changes := []Change{}
	m := thisMachine()
	for _, s := range poolSettings {
		shown := mustShow(poolShown, s.name)
		o, n := shown(&m, old), shown(&m, next)
		c := Change{"pool." + old.Name + "." + s.name, changeText(o), changeText(n), s.name}
		same := reflect.DeepEqual(o, n)
		switch { // whose values are not shown
		case s.name == "env":
			same = maps.Equal(old.Env, next.Env)
			c.Old, c.New = envChange(old.Env, next.Env), envChange(next.Env, old.Env)
		case s.name == "env_file" && same:
			same = maps.Equal(old.FileEnv, next.FileEnv)
			c.Old, c.New = envChange(old.FileEnv, next.FileEnv), envChange(next.FileEnv, old.FileEnv)
		}
		if !same {
			changes = append(changes, c)
		}
	}
	return changes
}

// changeText is a value as a Change has it.
func changeText(v any) string {
	switch v := v.(type) {
	case unset:
		return "none"
	case []string:
		return fmt.Sprintf("%q", v)
	case string:
		return cmp.Or(v, `""`)
	}
	return fmt.Sprint(v)
}

// envChange names what env has that is not in other, or has another value there.
func envChange(env, other map[string]string) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		switch v, there := other[name]; {
		case !there:
			names = append(names, name)
		case v != env[name]:
			names = append(names, name+" (another value)")
		}
	}
	return cmp.Or(strings.Join(names, ", "), "none")
}

func (m *Manager) supervisorChanges(next *Config, keys []string) []Change {
	old := m.cfg.Supervisor
	old.MaxWorkers = m.rations.limit()
	changes := []Change{}
	for _, key := range keys {
		shown := mustShow(supervisorShown, key)
		if o, n := changeText(shown(&old)), changeText(shown(&next.Supervisor)); o != n {
			changes = append(changes, Change{Key: "supervisor." + key, Old: o, New: n})
		}
	}
	return changes
}

// named is the pools of these names, or all.
func (m *Manager) named(names []string) ([]*pool, error) {
	all := m.pools.all()
	if len(names) == 0 {
		return all, nil
	}
	var pools []*pool
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		p := m.pools.named(name)
		if p == nil {
			return nil, unknownPool(name, texts(all, func(p *pool) string { return p.name }))
		}
		pools = append(pools, p)
	}
	return pools, nil
}

func unknownPool(name string, all []string) error {
	return fmt.Errorf("there is no pool %q: want one of %s", name, strings.Join(all, ", "))
}

func poolNames(pools []*pool) string {
	return strings.Join(texts(pools, func(p *pool) string { return p.name }), ", ")
}

// Reload rolls pools to what cfg says of them: new workers are ready before
// the old ones leave, and no request is lost. Where a pool's new workers do not
// come up, its old ones go on serving, and the log and the error say so; the other pools
// are rolled all the same. A pool that is new is there once its workers have come up, and one that is gone
// answers what it has accepted, which is not waited for. What can't be changed without a restart refuses the whole
// reload. Ending ctx gives up what has not come up yet.
func (m *Manager) Reload(ctx context.Context, cfg *Config, r Reloading) error {
	m.reload.Lock()
	defer m.reload.Unlock()
	if m.stopped {
		return ErrStopping
	}
	plan, err := m.Plan(cfg, r)
	if err == nil {
		err = m.holdToGroups(cfg)
	}
	if err == nil && len(plan.Refused) > 0 {
		err = fmt.Errorf("%s: restart fpmd for that", strings.Join(texts(plan.Refused, Change.String), "; "))
	}
	fronts := make(map[string]*refront)
	var leaving []*pool
	for _, todo := range plan.Pools {
		if todo.Removed {
			leaving = append(leaving, m.pools.named(todo.Name))
		}
	}
	for _, todo := range plan.Pools {
		switch {
		case err != nil || todo.Removed:
		case todo.Added:
			fronts[todo.Name], err = m.arrive(todo.next, leaving)
		default:
			fronts[todo.Name], err = m.refront(m.pools.named(todo.Name), todo.next)
		}
	}
	for _, p := range leaving {
		if err == nil {
			err = mayLeave(p, fronts)
		}
	}
	if err != nil {
		for _, r := range fronts {
			r.undo()
		}
		m.tellRefused(err)
		return err
	}
	for _, c := range plan.Later {
		m.log.Warn("configuration", "warning", c.String()+": that counts from the next start on")
	}
	for _, c := range plan.Changes {
		m.log.Info("configuration", "change", c.String())
	}
	m.rations.set(cfg.Supervisor.MaxWorkers)
	var steps []step
	var arrivals []*refront
	for _, todo := range plan.Pools {
		m.tellChanges(todo)
		r := fronts[todo.Name]
		switch {
		case todo.Removed:
			continue
		case todo.Added:
			arrivals = append(arrivals, r)
			continue
		}
		p := m.pools.named(todo.Name)
		steps = append(steps, step{p, func() error {
			if !todo.Rolled {
				p.resize(todo.next)
			} else if err := p.roll(ctx, todo.next); err != nil {
				r.undo()
				return err
			}
			return r.commit()
		}})
	}
	others := make(chan map[*pool]error, 1)
	go func() { others <- m.comeAndGo(ctx, arrivals, leaving) }() // is waited for
	failed := sideBySide(steps)
	maps.Copy(failed, <-others)
	for _, r := range arrivals {
		steps = append(steps, step{pool: r.p})
	}
	for _, p := range leaving {
		steps = append(steps, step{pool: p})
	}
	m.pools.sort(cfg)
	return m.tellRolled(ctx, "reload", steps, failed)
}

// Restart rolls the pools of these names, or all, to the configuration that they have.
func (m *Manager) Restart(ctx context.Context, names []string) error {
	m.reload.Lock()
	defer m.reload.Unlock()
	if m.stopped {
		return ErrStopping
	}
	pools, err := m.named(names)
	if err != nil {
		return err
	}
	var steps []step
	for _, p := range pools {
		steps = append(steps, step{p, func() error { return p.roll(ctx, p.config()) }})
	}
	return m.tellRolled(ctx, "restart", steps, sideBySide(steps))
}

// ErrStopping refuses what a stop has no time for.
var ErrStopping = errors.New("fpmd is stopping")

// A step is what a reload or restart does with a pool.
type step struct {
	pool *pool
	do   func() error
}

// sideBySide takes the steps, and returns which pools' have failed, and why.
func sideBySide(steps []step) (failed map[*pool]error) {
	failed = make(map[*pool]error)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, s := range steps {
		wg.Go(func() {
			if err := s.do(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed[s.pool] = err
			}
		})
	}
	wg.Wait()
	return failed
}
