package manager

import "testing"

// Every difference between two configurations is a change, also one whose values are not said.
func TestChanges(t *testing.T) {
	for name, tt := range map[string]struct {
		old, next PoolConfig
		want      string
	}{
		"nothing":             {PoolConfig{Env: map[string]string{"A": "1"}}, PoolConfig{Env: map[string]string{"A": "1"}}, ""},
		"a number":            {PoolConfig{QueueSize: 1}, PoolConfig{QueueSize: 2}, "pool.app.queue_size is now 2, not 1"},
		"a value of env":      {PoolConfig{Env: map[string]string{"A": "hunter1"}}, PoolConfig{Env: map[string]string{"A": "hunter2"}}, "pool.app.env is now A (another value), not A (another value)"},
		"a variable":          {PoolConfig{}, PoolConfig{Env: map[string]string{"A": "hunter2"}}, "pool.app.env is now A, not none"},
		"a value of env_file": {PoolConfig{FileEnv: map[string]string{"A": "hunter1"}}, PoolConfig{FileEnv: map[string]string{"A": "hunter2"}}, "pool.app.env_file is now A (another value), not A (another value)"},
		"where words end":     {PoolConfig{Command: []string{"x", "a b"}}, PoolConfig{Command: []string{"x", "a", "b"}}, `pool.app.command is now ["x" "a" "b"], not ["x" "a b"]`},
		"one is unset":        {PoolConfig{PM: Static}, PoolConfig{PM: Static, MaxAge: 1, MaxAgeJitter: 0}, "pool.app.max_age is now 1ns, not 0s"},
	} {
		tt.old.Name, tt.next.Name = "app", "app"
		got := changesOf(&tt.old, &tt.next)
		if tt.want == "" && len(got) == 0 {
			continue
		}
		if len(got) == 0 || got[0].String() != tt.want {
			t.Errorf("%s: %v, want %s", name, got, tt.want)
		}
	}
}
