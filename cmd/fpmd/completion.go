package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"fpmd/manager"
)

const completionHelp = `usage: fpmd completion bash|zsh|fish
       fpmd completion --pools [-c FILE]

Writes what makes that shell complete fpmd's commands and flags, files where a
flag takes one, and where a command takes a pool the names of those that the
configuration has.

  bash   source <(fpmd completion bash)     in ~/.bashrc, or for everybody
         fpmd completion bash >/usr/share/bash-completion/completions/fpmd
  zsh    source <(fpmd completion zsh)      in ~/.zshrc, behind compinit, or
         fpmd completion zsh >_fpmd         in a folder of $fpath
  fish   fpmd completion fish >~/.config/fish/completions/fpmd.fish

  --pools   write the names of the pools, one a line: what the shells ask for
  -c FILE   the configuration (default ` + defaultConfig + `)
`

// shells are those that completion writes for.
var shells = []string{"bash", "zsh", "fish"}

// A completionLine is the command line of fpmd completion.
type completionLine struct {
	config string
	pools  bool
}

func (l *completionLine) flags() *flag.FlagSet {
	f := newFlags("completion")
	f.StringVar(&l.config, "c", defaultConfig, "read the configuration from `FILE`")
	f.BoolVar(&l.pools, "pools", false, "write the names of the pools")
	return f
}

func cmdCompletion(_ context.Context, args []string, stdout, _ io.Writer) error {
	var l completionLine
	f := l.flags()
	if err := parseFlags(f, args, completionHelp, stdout); err != nil {
		return done(err)
	}
	if l.pools && f.NArg() == 0 {
		return writePools(l.config, stdout)
	}
	if f.NArg() != 1 || !slices.Contains(shells, f.Arg(0)) {
		return usageError("completion wants one of %s, got %q: fpmd completion --help", strings.Join(shells, ", "), f.Args())
	}
	write := map[string]func([]command) string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	_, err := io.WriteString(stdout, write[f.Arg(0)](commands()))
	return err
}

// writePools writes the names of the pools that there are, one a line.
func writePools(config string, stdout io.Writer) error {
	cfg, err := loadConfig(config, manager.LoadOptions{Asking: true})
	if err != nil {
		return err
	}
	for _, p := range cfg.Pools {
		if _, err := fmt.Fprintln(stdout, p.Name); err != nil {
			return err
		}
	}
	return nil
}

// An option is a flag as a shell completes it.
type option struct {
	flag     string // "-c", "--http"
	about    string
	value    string // what its value is called; "" takes none
	repeated bool
}

func (o option) takesFile() bool { return o.value == "FILE" }

// options are the flags of c, and --help.
func (c command) options() (os []option) {
	if c.flags == nil {
		return nil
	}
	c.flags.VisitAll(func(f *flag.Flag) {
		o := option{flag: dashed(f.Name)}
		_, o.repeated = f.Value.(*repeated)
		b, ok := f.Value.(interface{ IsBoolFlag() bool })
		o.value, o.about = flag.UnquoteUsage(f)
		if ok && b.IsBoolFlag() {
			o.value = ""
		}
		os = append(os, o)
	})
	return append(os, option{flag: "--help", about: "tell more"})
}

// takesPool reports whether the first argument of c is the name of a pool.
func (c command) takesPool() bool { return strings.Contains(c.args, "POOL") }

func bashCompletion(cs []command) string {
	var names []string
	var files, values, words strings.Builder
	for _, c := range cs {
		names = append(names, c.name)
		these := slices.Clone(c.words)
		for _, o := range c.options() {
			these = append(these, o.flag)
			switch {
			case o.takesFile():
				fmt.Fprintf(&files, " | %s:%s", c.name, o.flag)
			case o.value != "":
				fmt.Fprintf(&values, " | %s:%s", c.name, o.flag)
			}
		}
		pool := ""
		if c.takesPool() {
			pool = " pool=1"
		}
		fmt.Fprintf(&words, "\t%s) words='%s'%s ;;\n", c.name, strings.Join(these, " "), pool)
	}
	return `# fpmd's completion for bash; fpmd completion --help says where to put it.
_fpmd() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words= pool= config= i
	COMPREPLY=()
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W '` + strings.Join(names, " ") + `' -- "$cur")
		return
	fi
	case ${COMP_WORDS[1]}:$prev in
	` + strings.TrimPrefix(files.String(), " | ") + `)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return ;;
	` + strings.TrimPrefix(values.String(), " | ") + `)
		return ;; # nobody knows but who types
	esac
	case ${COMP_WORDS[1]} in
` + words.String() + `	esac
	# A pool is the first word that is no flag, and no flag's.
	for ((i = 2; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[1]}:${COMP_WORDS[i]} in
		` + strings.TrimPrefix(files.String(), " | ") + `) config=-c=${COMP_WORDS[++i]//\\/} ;;
		` + strings.TrimPrefix(values.String(), " | ") + `) ((++i)) ;;
		*:-*) ;;
		*) pool= ;;
		esac
	done
	[ -z "$pool" ] || words+=" $("${COMP_WORDS[0]}" completion --pools ${config:+"$config"} 2>/dev/null)"
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _fpmd fpmd
`
}

func zshCompletion(cs []command) string {
	// A colon separates what _describe and _arguments are told, a bracket ends a description.
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `[`, `\[`, `]`, `\]`, `'`, `'\''`).Replace
	var names, cases strings.Builder
	for _, c := range cs {
		fmt.Fprintf(&names, "\t\t\t'%s:%s'\n", c.name, escape(c.about))
		var specs []string
		for _, o := range c.options() {
			spec := o.flag + "[" + escape(o.about) + "]"
			if o.repeated {
				spec = "*" + spec
			}
			switch {
			case o.takesFile():
				spec += ":" + o.value + ":_files"
			case o.value != "":
				spec += ":" + escape(o.value) + ": "
			}
			specs = append(specs, "'"+spec+"'")
		}
		if c.words != nil {
			specs = append(specs, "'1:"+strings.ToLower(c.args)+":("+strings.Join(c.words, " ")+")'")
		}
		if c.takesPool() {
			specs = append(specs, "'1:pool:_fpmd_pools'")
		}
		if specs != nil {
			fmt.Fprintf(&cases, "\t%s) _arguments \\\n\t\t\t%s ;;\n", c.name, strings.Join(specs, " \\\n\t\t\t"))
		}
	}
	return `#compdef fpmd
# fpmd's completion for zsh; fpmd completion --help says where to put it.
_fpmd() {
	if (( CURRENT == 2 )); then
		local -a names=(
` + names.String() + `		)
		_describe -t commands command names
		return
	fi
	local fpmd=$words[1]
	shift words
	(( CURRENT-- ))
	case $words[1] in
` + cases.String() + `	esac
}
_fpmd_pools() {
	local config=${(Q)${(Q)opt_args[-c]}} # as _arguments quotes what is quoted
	local -a pools=(${(f)"$($fpmd completion --pools ${config:+-c=$config} 2>/dev/null)"})
	compadd -a pools
}
# Autoloaded, this file is the function's first call; sourced, it is not.
if [ "$funcstack[1]" = _fpmd ]; then
	_fpmd "$@"
else
	compdef _fpmd fpmd
fi
`
}

func fishCompletion(cs []command) string {
	quote := func(s string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
	}
	var s strings.Builder
	s.WriteString(`# fpmd's completion for fish; fpmd completion --help says where to put it.
function __fpmd_command
	set -l words (commandline -opc)
	test "$words[2]" = "$argv[1]"
end
function __fpmd_pools # FLAG...: those that take a value; the pool is the first word that is no flag, and no flag's
	set -l words (commandline -opc)
	set -l fpmd $words[1]
	set -l config
	set -l flag
	set -l others # fpmd and its command among them
	for word in $words
		if set -q flag[1]
			test "$flag" = -c; and set config -c=$word
			set -e flag
		else if contains -- $word $argv
			set flag $word
		else if not string match -q -- '-*' $word
			set -a others $word
		end
	end
	test (count $others) -gt 2; or $fpmd completion --pools $config 2>/dev/null
end
complete -c fpmd -f
`)
	for _, c := range cs {
		fmt.Fprintf(&s, "complete -c fpmd -n '__fpmd_command \"\"' -a %s -d %s\n", c.name, quote(c.about))
		in := "complete -c fpmd -n '__fpmd_command " + c.name + "'"
		var valued []string
		for _, o := range c.options() {
			if o.value != "" {
				valued = append(valued, o.flag)
			}
			name := "-s " + strings.TrimPrefix(o.flag, "-")
			if long, ok := strings.CutPrefix(o.flag, "--"); ok {
				name = "-l " + long
			}
			switch {
			case o.takesFile():
				name += " -r -F"
			case o.value != "":
				name += " -x"
			}
			fmt.Fprintf(&s, "%s %s -d %s\n", in, name, quote(o.about))
		}
		for _, w := range c.words {
			fmt.Fprintf(&s, "%s -a %s\n", in, w)
		}
		if c.takesPool() {
			fmt.Fprintf(&s, "%s -a '(__fpmd_pools %s)'\n", in, strings.Join(valued, " "))
		}
	}
	return s.String()
}
