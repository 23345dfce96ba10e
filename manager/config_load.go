package manager

import "errors"

// LoadOptions is what Load may be told. The zero value is right for serving.
type LoadOptions struct {
	// LookupEnv is where ${VAR} is looked up; nil: os.LookupEnv.
	LookupEnv func(name string) (value string, set bool)
}

// Load reads the configuration at path.
func Load(path string, opts LoadOptions) (*Config, error) {
	return nil, errors.New("not written yet")
}
