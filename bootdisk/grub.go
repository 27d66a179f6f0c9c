package bootdisk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Limits of a configuration that is run.
const (
	maxSteps    = 100_000  // commands
	maxText     = 64 << 10 // bytes of a variable or a command
	maxExpanded = 16 << 20 // bytes of all commands
	maxCalls    = 16       // functions in functions, files in files
	maxWords    = 4096     // of a command
	variables   = 4096
)

// grub looks for GRUB's configuration and runs it.
func (f *finder) grub(v *volume) (*choice, error) {
	for _, dir := range []string{"/boot/grub", "/boot/grub2", "/grub", "/grub2"} {
		text, err := v.read(dir + "/grub.cfg")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c, err := f.runGRUB(v, dir, text)
		if err != nil {
			return nil, fmt.Errorf("%s/grub.cfg: %w", dir, err)
		}
		c.source = fmt.Sprintf("%s/grub.cfg of %s", dir, v)
		return c, nil
	}
	return nil, nil
}

// runGRUB runs a configuration that is in dir, and what its default entry leads to.
func (f *finder) runGRUB(v *volume, dir, text string) (*choice, error) {
	g := &grub{f: f, functions: map[string][]statement{}, variables: map[string]string{
		"root": v.grubName(), "prefix": "(" + v.grubName() + ")" + dir, "grub_platform": "pc", "grub_cpu": "x86_64",
		"feature_menuentry_id": "y", "feature_default_font_path": "y", "feature_platform_search_hint": "y",
		"feature_all_video_module": "y", "feature_timeout_style": "y", "feature_200_final": "y", "feature_ntldr": "y",
	}}
	if _, err := g.run(text); err != nil {
		return nil, err
	}
	entry, err := g.choose()
	if err != nil {
		return nil, err
	}
	if entry.loader != nil {
		return entry.loader.choose(entry.on, "", g.variables), nil
	}
	// Ubuntu's images try to boot without the initial RAM disk first, and this says that it did not work.
	g.variables["initrdfail"] = "1"
	g.variables["chosen"] = entry.title
	g.kernel, g.initrds = file{}, nil
	if _, err := g.call(entry.body, entry.arguments); err != nil {
		return nil, err
	}
	if g.kernel.on == nil {
		return nil, fmt.Errorf("entry %q starts no Linux", entry.title)
	}
	return &choice{title: entry.title, kernel: g.kernel, initrds: g.initrds, commandLine: g.commandLine}, nil
}

// grubName is GRUB's name for the volume's partition.
func (v *volume) grubName() string {
	if v.number == 0 {
		return "hd0"
	}
	return "hd0," + v.scheme + strconv.Itoa(v.number)
}

// menuEntry is an entry of GRUB's menu.
type menuEntry struct {
	title, id string
	body      []statement
	arguments []string
	submenu   bool
	loader    *loaderEntry // of blscfg
	on        *volume      // that loader is on
}

// grub is GRUB while it runs a configuration.
type grub struct {
	f         *finder
	variables map[string]string
	functions map[string][]statement
	arguments []string
	menu      []menuEntry
	steps     int
	expanded  int
	depth     int

	kernel      file
	commandLine string
	initrds     []file
}

// errReturn ends a function.
var errReturn = errors.New("return outside a function")

// run runs a script; ok says whether its last command succeeded.
func (g *grub) run(text string) (ok bool, err error) {
	body, err := parse(text)
	if err != nil {
		return false, err
	}
	return g.call(body, g.arguments)
}

// call runs a function's, a file's or an entry's statements with arguments of their own.
func (g *grub) call(body []statement, arguments []string) (ok bool, err error) {
	if g.depth++; g.depth > maxCalls {
		return false, fmt.Errorf("%w: more than %d calls in calls", errScript, maxCalls)
	}
	outer := g.arguments
	g.arguments = arguments
	ok, err = g.execute(body)
	g.arguments = outer
	g.depth--
	if errors.Is(err, errReturn) {
		err = nil
	}
	return ok, err
}

func (g *grub) execute(body []statement) (ok bool, err error) {
	ok = true
	for _, s := range body {
		if g.steps++; g.steps > maxSteps {
			return false, fmt.Errorf("%w: it goes on for more than %d commands", errScript, maxSteps)
		}
		switch s.kind {
		case condition:
			ok, err = g.condition(s)
		case loop:
			ok, err = g.loop(s)
		case function:
			if len(g.functions) < variables {
				g.functions[s.words[0][0].text] = s.block
			}
		default:
			ok, err = g.command(s)
		}
		if err != nil {
			return ok, err
		}
	}
	return ok, nil
}

func (g *grub) condition(s statement) (bool, error) {
	for _, b := range s.cases {
		yes := true
		if b.test != nil {
			var err error
			if yes, err = g.execute(b.test); err != nil {
				return false, err
			}
		}
		if yes {
			return g.execute(b.body)
		}
	}
	return true, nil
}

func (g *grub) loop(s statement) (ok bool, err error) {
	values, err := g.expand(s.words[2:])
	if err != nil {
		return false, err
	}
	ok = true
	for _, value := range values {
		g.set(s.words[0][0].text, value)
		if ok, err = g.execute(s.block); err != nil {
			return false, err
		}
	}
	return ok, nil
}

// expand makes arguments of words: values that are not quoted are split at spaces.
func (g *grub) expand(words []word) (out []string, err error) {
	total := 0
	for _, w := range words {
		var b strings.Builder
		begun := false // the argument
		for _, p := range w {
			text := p.text
			if p.variable {
				text = g.value(p.text)
			}
			if !p.variable || p.quoted {
				b.WriteString(text)
				begun = begun || text != "" || p.quoted
			} else {
				fields := strings.Fields(text)
				for i, field := range fields {
					if i > 0 {
						out = append(out, b.String())
						b.Reset()
					}
					b.WriteString(field)
					begun = true
				}
			}
			if g.expanded += len(text); g.expanded > maxExpanded {
				return nil, fmt.Errorf("%w: its commands have more than %d bytes", errScript, maxExpanded)
			}
			if total += len(text); total > maxText || len(out) > maxWords {
				return nil, fmt.Errorf("%w: a command of more than %d bytes", errScript, maxText)
			}
		}
		if begun {
			out = append(out, b.String())
		}
	}
	return out, nil
}

// value is a variable's, or a positional parameter's.
func (g *grub) value(name string) string {
	switch n, err := strconv.Atoi(name); {
	case err == nil && n >= 1 && n <= len(g.arguments):
		return g.arguments[n-1]
	case name == "@" || name == "*":
		return strings.Join(g.arguments, " ")
	case name == "#":
		return strconv.Itoa(len(g.arguments))
	}
	return g.variables[name]
}

func (g *grub) set(name, value string) {
	if _, known := g.variables[name]; known || len(g.variables) < variables {
		g.variables[name] = value
	}
}

// command runs one command. Unknown ones fail, which is no error.
func (g *grub) command(s statement) (ok bool, err error) {
	args, err := g.expand(s.words)
	if err != nil || len(args) == 0 {
		return true, err
	}
	name, args := args[0], args[1:]
	if body, is := g.functions[name]; is {
		return g.call(body, args)
	}
	switch name {
	case "!":
		return g.negate(s, args)
	case "set":
		for _, a := range args {
			if key, value, found := strings.Cut(a, "="); found {
				g.set(key, value)
			}
		}
		return true, nil
	case "unset":
		for _, a := range args {
			delete(g.variables, a)
		}
		return true, nil
	case "[", "test":
		return g.test(args)
	case "true", "insmod", "export", "echo", "save_env", "recordfail", "terminal_input", "terminal_output", "gfxmode", "clear", "sleep", "play":
		return true, nil
	case "return":
		return len(args) == 0 || args[0] == "0", errReturn
	case "menuentry", "submenu":
		return true, g.menuEntry(name == "submenu", args, s.block)
	case "linux", "linuxefi", "linux16":
		return g.linux(args)
	case "initrd", "initrdefi", "initrd16":
		g.initrds = nil
		for _, a := range args {
			at, err := g.path(a)
			if err != nil {
				return false, err
			}
			g.initrds = append(g.initrds, at)
		}
		return true, nil
	case "search", "search.fs_uuid", "search.fs_label", "search.file":
		return g.search(name, args), nil
	case "load_env":
		return g.loadEnvironment(args), nil
	case "configfile", "normal", "source", ".":
		return g.include(args)
	case "blscfg":
		return true, g.blscfg()
	}
	if key, value, found := strings.Cut(name, "="); found && key != "" {
		g.set(key, value) // GRUB takes an assignment without set, too
		return true, nil
	}
	return false, nil
}

func (g *grub) negate(s statement, args []string) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	ok, err := g.command(statement{words: s.words[1:], block: s.block})
	return !ok, err
}

// menuEntry enters an entry in the menu.
func (g *grub) menuEntry(submenu bool, args []string, body []statement) error {
	if len(g.menu) >= maxEntries {
		return nil
	}
	e := menuEntry{body: body, submenu: submenu}
	var positional []string
	for i := 0; i < len(args); i++ {
		name, value, inside := strings.Cut(args[i], "=")
		switch name {
		case "--id", "--class", "--users", "--hotkey", "--source":
			if !inside && i+1 < len(args) {
				i++
				value = args[i]
			}
			if name == "--id" {
				e.id = value
			}
		case "--unrestricted":
		default:
			if args[i] == "$menuentry_id_option" {
				continue
			}
			positional = append(positional, args[i])
		}
	}
	if len(positional) == 0 {
		return fmt.Errorf("%w: an entry without a title", errScript)
	}
	e.title, e.arguments = positional[0], positional
	g.menu = append(g.menu, e)
	return nil
}

// choose returns the entry that the menu would start by itself.
func (g *grub) choose() (menuEntry, error) {
	wanted := cmp.Or(g.variables["next_entry"], g.variables["default"])
	for depth := 0; ; depth++ {
		if len(g.menu) == 0 {
			return menuEntry{}, errors.New("no menu entry")
		}
		name, rest, _ := strings.Cut(wanted, ">")
		at := slices.IndexFunc(g.menu, func(e menuEntry) bool { return name != "" && (e.id == name || e.title == name) })
		if whole := slices.IndexFunc(g.menu, func(e menuEntry) bool { return wanted != "" && (e.id == wanted || e.title == wanted) }); at < 0 && whole >= 0 {
			at, rest = whole, ""
		}
		if n, err := strconv.Atoi(strings.TrimSpace(name)); at < 0 && err == nil && n >= 0 && n < len(g.menu) {
			at = n
		}
		if at < 0 {
			at, rest = 0, "" // as GRUB does with a default that is gone
		}
		e := g.menu[at]
		if !e.submenu {
			return e, nil
		}
		if depth > maxCalls {
			return menuEntry{}, fmt.Errorf("%w: menus in menus", errScript)
		}
		g.menu, wanted = nil, rest
		if _, err := g.call(e.body, e.arguments); err != nil {
			return menuEntry{}, err
		}
	}
}

// volume is that of a name like hd0,gpt2 or hd0,2.
func (g *grub) volume(name string) *volume {
	for _, v := range g.f.volumes {
		if name == v.grubName() || name == "hd0,"+strconv.Itoa(v.number) {
			return v
		}
	}
	return nil
}

// path finds what a path means: /path on the root, or (hd0,gpt1)/path.
func (g *grub) path(p string) (file, error) {
	device := g.variables["root"]
	if rest, is := strings.CutPrefix(p, "("); is {
		var found bool
		if device, p, found = strings.Cut(rest, ")"); !found {
			return file{}, fmt.Errorf("%w: path %q", errScript, rest)
		}
		if device == "" {
			device = g.variables["root"]
		}
	}
	v := g.volume(device)
	if v == nil {
		return file{}, fmt.Errorf("%s: no file system that can be read is on (%s)", p, device)
	}
	return file{v, path.Clean("/" + p)}, nil
}

// linux notes the kernel.
func (g *grub) linux(args []string) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	at, err := g.path(args[0])
	if err != nil {
		return false, err
	}
	g.kernel, g.initrds = at, nil
	for i, a := range args {
		if strings.ContainsAny(a, " \t") {
			args[i] = `"` + a + `"` // as the kernel's own parser wants it
		}
	}
	g.commandLine = strings.Join(args[1:], " ")
	return true, nil
}

// search sets a variable to the device of the file system that it finds.
func (g *grub) search(name string, args []string) bool {
	by, variable := map[string]string{"search.fs_uuid": "uuid", "search.fs_label": "label", "search.file": "file"}[name], "root"
	var operands []string
	for i := 0; i < len(args); i++ {
		option, value, inside := strings.Cut(args[i], "=")
		switch {
		case option == "-u" || option == "--fs-uuid":
			by = "uuid"
		case option == "-l" || option == "--label" || option == "--fs-label":
			by = "label"
		case option == "-f" || option == "--file":
			by = "file"
		case option == "-s" || option == "--set":
			variable = cmp.Or(value, "root")
		case option == "-h" || option == "--hint":
			if !inside {
				i++
			}
		case strings.HasPrefix(option, "-"):
		default:
			operands = append(operands, args[i])
		}
	}
	if len(operands) == 0 {
		return false
	}
	if by != "" && name != "search" && len(operands) > 1 {
		variable = operands[1] // search.fs_uuid UUID VARIABLE HINTS
	}
	for _, v := range g.f.volumes {
		is := false
		switch by {
		case "uuid":
			is = strings.EqualFold(v.fsID, operands[0])
		case "label":
			is = v.label == operands[0]
		case "file":
			_, err := v.fs.Open(operands[0])
			is = err == nil
		}
		if is {
			g.set(variable, v.grubName())
			return true
		}
	}
	return false
}

// test is the command of that name, and [.
func (g *grub) test(args []string) (bool, error) {
	if n := len(args); n > 0 && args[n-1] == "]" {
		args = args[:n-1]
	}
	// Or binds weakest, then and.
	for _, join := range []string{"-o", "-a"} {
		if i := slices.Index(args, join); i > 0 && i < len(args)-1 {
			left, err := g.test(args[:i])
			if err != nil || left == (join == "-o") {
				return left, err
			}
			return g.test(args[i+1:])
		}
	}
	switch {
	case len(args) == 0:
		return false, nil
	case args[0] == "!":
		ok, err := g.test(args[1:])
		return !ok, err
	case len(args) == 1:
		return args[0] != "", nil
	case len(args) == 2:
		return g.testFile(args[0], args[1]), nil
	}
	a, b := args[0], args[2]
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	numbers := errX == nil && errY == nil
	switch args[1] {
	case "=", "==":
		return a == b, nil
	case "!=":
		return a != b, nil
	case "<":
		return a < b, nil
	case ">":
		return a > b, nil
	case "-eq":
		return numbers && x == y, nil
	case "-ne":
		return numbers && x != y, nil
	case "-lt":
		return numbers && x < y, nil
	case "-le":
		return numbers && x <= y, nil
	case "-gt":
		return numbers && x > y, nil
	case "-ge":
		return numbers && x >= y, nil
	}
	return false, nil
}

func (g *grub) testFile(operator, operand string) bool {
	switch operator {
	case "-n":
		return operand != ""
	case "-z":
		return operand == ""
	}
	at, err := g.path(operand)
	if err != nil {
		return false
	}
	switch operator {
	case "-d":
		_, err = at.on.fs.ReadDir(at.path)
		return err == nil
	case "-e", "-f", "-s":
		i, err := at.on.fs.Open(at.path)
		if err != nil && operator == "-e" {
			_, err = at.on.fs.ReadDir(at.path)
		}
		return err == nil && (operator != "-s" || i.Size() > 0)
	}
	return false
}

// loadEnvironment reads variables from GRUB's environment block: all, or those that are named.
func (g *grub) loadEnvironment(args []string) bool {
	name := g.variables["prefix"] + "/grubenv"
	var only []string
	for i := 0; i < len(args); i++ {
		option, value, inside := strings.Cut(args[i], "=")
		switch {
		case option == "-f" || option == "--file":
			if !inside && i+1 < len(args) {
				i++
				value = args[i]
			}
			name = value
		case strings.HasPrefix(option, "-"):
		default:
			only = append(only, args[i])
		}
	}
	at, err := g.path(name)
	if err != nil {
		return false
	}
	text, err := at.on.read(at.path)
	if err != nil || !strings.HasPrefix(text, "# GRUB Environment Block\n") {
		return false
	}
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if found && !strings.HasPrefix(key, "#") && (len(only) == 0 || slices.Contains(only, key)) {
			g.set(key, strings.ReplaceAll(value, `\\`, `\`))
		}
	}
	return true
}

// include runs another file. For configfile the menu begins anew.
func (g *grub) include(args []string) (bool, error) {
	name := g.variables["prefix"] + "/grub.cfg"
	if len(args) > 0 {
		name = args[0]
	}
	if at, err := g.path(name); err == nil {
		if text, err := at.on.read(at.path); err == nil {
			return g.run(text)
		}
	}
	return false, nil
}

// blscfg puts the entries of the Boot Loader Specification in the menu, as Fedora's GRUB does.
func (g *grub) blscfg() error {
	v := g.volume(g.variables["root"])
	if v == nil {
		return nil
	}
	for _, dir := range []string{"/loader/entries", "/boot/loader/entries"} {
		entries, err := readLoaderEntries(v, dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.linux == "" || len(g.menu) >= maxEntries {
				continue
			}
			g.menu = append(g.menu, menuEntry{title: e.title, id: e.id, loader: &e, on: v})
		}
		if len(entries) > 0 {
			break
		}
	}
	return nil
}
