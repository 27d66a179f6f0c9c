package bootdisk

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mapFS is files in memory, as a fileSystem.
type mapFS map[string]string

func (m mapFS) Open(path string) (Image, error) {
	if text, is := m[path]; is {
		return strings.NewReader(text), nil
	}
	return nil, fs.ErrNotExist
}

func (m mapFS) ReadDir(path string) (names []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if rest, is := strings.CutPrefix(name, strings.TrimSuffix(path, "/")+"/"); is {
			if first, _, _ := strings.Cut(rest, "/"); !slices.Contains(names, first) {
				names = append(names, first)
			}
		}
	}
	if names == nil {
		return nil, fs.ErrNotExist
	}
	return names, nil
}

func runConfig(text string, files mapFS) (*choice, error) {
	if files == nil {
		files = mapFS{}
	}
	v := &volume{partition: partition{number: 1, scheme: "gpt"}, fs: files, label: "root", fsID: rootUUID}
	other := &volume{partition: partition{number: 2, scheme: "gpt"}, fs: mapFS{"/there": ""}, label: "other", fsID: bootUUID}
	f := &finder{volumes: []*volume{v, other}}
	return f.runGRUB(v, "/boot/grub", text)
}

// TestGRUB has one command line of each configuration.
func TestGRUB(t *testing.T) {
	entry := func(words string) string { return "menuentry e { linux /k " + words + "; }" }
	for _, tt := range []struct{ config, want string }{
		{entry("a b"), "a b"},
		{entry(`'a  b' "c d" e\ f`), `"a  b" "c d" "e f"`},
		{`set x="1 2"` + "\n" + entry(`$x "$x" a${x}b '$x' \$x`), `1 2 "1 2" a1 2b $x $x`},
		{"set x=y\nset y=z\n" + entry("$x$y ${x}y $none\"\" $none"), `yz yy `},
		{"x=1 # a comment\n# another\n" + entry("$x#not"), "1#not"},
		{"if [ a = a -a b != c ]; then set x=1; else set x=2; fi\n" + entry("$x"), "1"},
		{"if [ ! 1 -lt 2 ]; then set x=1; elif test 3 -ge 3; then set x=2; else set x=3; fi\n" + entry("$x"), "2"},
		{"if ! false; then set x=1; fi\n" + entry("$x"), "1"},
		{"if nonsense; then set x=1; else set x=2; fi\n" + entry("$x"), "2"},
		{"if [ -e /there -a -d /boot ]; then set x=1; else set x=2; fi\n" + entry("$x"), "1"},
		{"if [ -f (hd0,gpt2)/there -a -f (hd0,2)/there ]; then set x=1; fi\n" + entry("$x"), "1"},
		{"if [ -s /empty -o -z x ]; then set x=1; else set x=2; fi\n" + entry("$x"), "2"},
		{"for i in 1 2 3; do set x=$x$i; done\n" + entry("$x"), "123"},
		{"function f { set x=\"$1-$2-$#\"; return 1; set x=no; }\nif f a b c; then set y=1; else set y=2; fi\n" + entry("$x $y"), "a-b-3 2"},
		{"search --no-floppy --fs-uuid --set=r " + bootUUID + "\nsearch -l other --set q\nsearch.fs_uuid " + rootUUID + " p hd0\nsearch.file /there o\n" + entry("$r $p $o"), "hd0,gpt2 hd0,gpt1 hd0,gpt1"},
		{"source /other.cfg\n" + entry("$included"), "yes"},
		{"configfile ($root)/menu.cfg", "of the menu"},
		{"load_env saved\nset default=$saved\nmenuentry a { linux /k a; }\nmenuentry b --id=bb { linux /k b; }", "b"},
		{"set default=1\nmenuentry a { linux /k a; }\nmenuentry b { linux /k b; }", "b"},
		{"set default='1>0'\nmenuentry a { linux /k a; }\nsubmenu b { menuentry c { linux /k c; }\n menuentry d { linux /k d; } }", "c"},
		{"set default=gone\nmenuentry a { linux /k a; }\nmenuentry b { linux /k b; }", "a"},
		{"set default='a > b'\nmenuentry x { linux /k x; }\nmenuentry 'a > b' { linux /k y; }", "y"},
		{"menuentry 'with $1' arg { linux /k \"$1\" $2; }", `"with $1" arg`},
		{"menuentry a --class x --unrestricted --hotkey=h --users u { linux /k $chosen; }", "a"},
		{"menuentry a {\nlinux /first\nlinux /k second\n}", "second"},
	} {
		c, err := runConfig(tt.config, mapFS{
			"/there": "", "/empty": "", "/boot/x": "", "/other.cfg": "set included=yes", "/menu.cfg": entry("of the menu"),
			"/boot/grub/grubenv": grubEnvironment("saved=bb\nother=1\n"),
		})
		require.NoError(t, err, tt.config)
		require.Equal(t, "/k", c.kernel.path, tt.config)
		require.Equal(t, tt.want, c.commandLine, tt.config)
	}
}

func TestGRUBErrors(t *testing.T) {
	deep := strings.Repeat("if true; then ", 50) + strings.Repeat("fi; ", 50)
	for _, tt := range []struct{ config, want string }{
		{"", "no menu entry"},
		{"menuentry a { true; }", `entry "a" starts no Linux`},
		{"menuentry 'a", "grub.cfg makes no sense: a quote without an end"},
		{`menuentry "a`, "grub.cfg makes no sense: a quote without an end"},
		{"menuentry ${a", "grub.cfg makes no sense: ${ without an end"},
		{"menuentry { }", "grub.cfg makes no sense: an entry without a title"},
		{"menuentry a { linux /k", `grub.cfg makes no sense: "}" is missing`},
		{"if true; then", "grub.cfg makes no sense: if without fi"},
		{"if ; then fi", "grub.cfg makes no sense: if without a condition"},
		{"fi", `grub.cfg makes no sense: "fi" ends nothing`},
		{"for x; do true; done", "grub.cfg makes no sense: for without in"},
		{"while true; do true; done", "grub.cfg makes no sense: while is not known here"},
		{deep, "grub.cfg makes no sense: blocks in more than 32 blocks"},
		{"function f { f; }; f", "grub.cfg makes no sense: more than 16 calls in calls"},
		{"source /self", "grub.cfg makes no sense: more than 16 calls in calls"},
		{"for a in 1 2 3 4 5 6 7 8 9 0; do for b in 1 2 3 4 5 6 7 8 9 0; do for c in 1 2 3 4 5 6 7 8 9 0; do for d in 1 2 3 4 5 6 7 8 9 0; do for e in 1 2 3 4 5 6 7 8 9 0; do true; done; done; done; done; done",
			"grub.cfg makes no sense: it goes on for more than 100000 commands"},
		{"set x=0123456789; for i in " + strings.Repeat("1 ", 20) + "; do set x=$x$x; done", "grub.cfg makes no sense: a command of more than 65536 bytes"},
		{"submenu a { submenu b { menuentry c { true; } } }", `entry "c" starts no Linux`},
		{"menuentry a { linux (hd1)/k; }", "/k: no file system that can be read is on (hd1)"},
		{"menuentry a { linux /k; initrd (hd0,9)/i; }", "/i: no file system that can be read is on (hd0,9)"},
	} {
		_, err := runConfig(tt.config, mapFS{"/self": "source /self"})
		require.EqualError(t, err, tt.want, tt.config)
	}
}

// TestLoaderEntries has the order of the specification's menu.
func TestLoaderEntries(t *testing.T) {
	files := mapFS{}
	add := func(name, text string) { files["/loader/entries/"+name+".conf"] = text }
	add("a-1.0", "title no key\nlinux /k1")
	add("b-9.0+0", "title failed\nsort-key a\nversion 9\nlinux /k2")
	add("c-5.9", "title older\nsort-key fedora\nmachine-id 1\nversion 5.9\nlinux /k3\ninitrd /i1\ninitrd /i2 $tuned_initrd\noptions a\noptions b # not a comment")
	add("d-5.10+3-1", "title newer\n# comment\nsort-key fedora\nmachine-id 1\nversion 5.10\nlinux /k4")
	add("e", "title a program\nsort-key a\nefi /shell.efi")
	v := &volume{fs: files}
	entries, err := readLoaderEntries(v, "/loader/entries")
	require.NoError(t, err)
	var titles []string
	for _, e := range entries {
		titles = append(titles, e.title)
	}
	require.Equal(t, []string{"a program", "newer", "older", "no key", "failed"}, titles)

	f := &finder{volumes: []*volume{v}}
	c, err := f.loaderEntries(v)
	require.NoError(t, err)
	require.Equal(t, "newer", c.title, "and not the program")
	for pattern, want := range map[string]string{"c-*": "older", "c-5.9.conf": "older", "gone": "newer", "[": "newer", "@saved": "newer"} {
		files["/loader/loader.conf"] = "timeout 3\ndefault " + pattern + "\n"
		c, err := f.loaderEntries(v)
		require.NoError(t, err)
		require.Equal(t, want, c.title, pattern)
		if want == "older" {
			require.Equal(t, "a b # not a comment", c.commandLine)
			require.Equal(t, []file{{v, "/i1"}, {v, "/i2"}}, c.initrds)
		}
	}
}

// TestUnified has a program for UEFI, put together by hand: a header of an executable with three sections.
func TestUnified(t *testing.T) {
	image := func(sections map[string]string) string {
		names := slices.Sorted(maps.Keys(sections))
		head := make([]byte, 64+24+40*len(names))
		copy(head, "MZ")
		head[0x3c] = 64
		copy(head[64:], "PE\x00\x00\x64\x86")
		head[64+6] = byte(len(names))
		body := ""
		for i, name := range names {
			s := head[64+24+40*i:]
			copy(s, name)
			n := len(sections[name])
			for j, v := range []int{n, 0, n + 4, len(head) + len(body)} {
				s[8+4*j], s[9+4*j] = byte(v), byte(v>>8)
			}
			body += sections[name] + "\x00\x00\x00\x00"
		}
		return string(head) + body
	}
	files := mapFS{
		"/EFI/Linux/os-9.efi":  image(map[string]string{".linux": "kernel 9", ".initrd": "initrd", ".cmdline": "root=LABEL=root quiet\n\x00"}),
		"/EFI/Linux/os-10.efi": image(map[string]string{".text": "not a kernel"}),
		"/EFI/Linux/os-11.EFI": "MZ",
		"/EFI/Linux/readme":    "x",
	}
	v := &volume{fs: files}
	f := &finder{volumes: []*volume{v}}
	c, err := f.loaderEntries(v)
	require.NoError(t, err)
	b, err := c.open()
	require.NoError(t, err)
	require.Equal(t, "root=LABEL=root quiet", b.CommandLine)
	require.Equal(t, "os-9.efi", b.Title)
	require.EqualValues(t, 8, b.Kernel.Size())
	require.EqualValues(t, 6, b.Initrd.Size())
	require.Len(t, v.notes, 2)
	require.Contains(t, v.notes[1], "/EFI/Linux/os-10.efi: no kernel inside")
}

func TestSyslinux(t *testing.T) {
	for _, tt := range []struct{ config, kernel, initrds, commandLine string }{
		{"LABEL a\nKERNEL /k\nAPPEND initrd=/i1,i2 x=1  y", "/k", "/i1 /dir/i2", "x=1 y"},
		{"default b\nlabel a\nlinux k\nlabel b\nlinux kb\ninitrd i", "/dir/kb", "/dir/i", ""},
		{"default gone\nlabel a\nlinux k", "/dir/k", "", ""},
	} {
		c, err := parseSyslinux(nil, "/dir", tt.config)
		require.NoError(t, err)
		var initrds []string
		for _, i := range c.initrds {
			initrds = append(initrds, i.path)
		}
		require.Equal(t, tt.kernel, c.kernel.path)
		require.Equal(t, tt.initrds, strings.Join(initrds, " "))
		require.Equal(t, tt.commandLine, c.commandLine)
	}
	_, err := parseSyslinux(nil, "", "timeout 1")
	require.EqualError(t, err, "no entry")
	_, err = parseSyslinux(nil, "", "label a")
	require.EqualError(t, err, `entry "a" has no kernel`)
}

// TestCompareVersions has examples of the specification, and of what distributions have.
func TestCompareVersions(t *testing.T) {
	for _, line := range []string{
		"122.1 < 123~rc1-1 < 123 < 123-a < 123-a.1 < 123-1 < 123-1.1 < 123^post1 < 123.a-1 < 123.1-1 < 123a-1 < 124-1",
		"6.1.0-9-amd64 < 6.1.0-10-amd64 < 6.12.0-1-amd64",
		"5.15.0-91-generic < 5.15.0-100-generic < 6.8.0-31-generic",
		"11 = 11 = 011 = 11_", "abc < abcd0 < abd < 1", "~ <  < a",
	} {
		words := strings.Split(line, " ")
		for i := 0; i+2 < len(words); i += 2 {
			a, op, b := words[i], words[i+1], words[i+2]
			got, back := compareVersions(a, b), compareVersions(b, a)
			require.Equal(t, op == "<", got < 0, "%q %q: %d", a, b, got)
			require.Equal(t, op == "=", got == 0, "%q %q: %d", a, b, got)
			require.Equal(t, op == "<", back > 0, "%q %q: %d", b, a, back)
		}
	}
}

func FuzzGRUB(f *testing.F) {
	f.Add(debianConfig)
	f.Add("function f { set x=\"$1-$2-$#\"; return 1; }\nfor i in 1 2 3; do set x=$x$i; done; blscfg; submenu a { menuentry b { linux /k 'x y'; initrd /i; } }")
	files := mapFS{"/there": "", "/loader/entries/a.conf": "linux /k", "/boot/grub/grubenv": grubEnvironment("a=b\n")}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := runConfig(text, files)
		if err == nil && c.kernel.path == "" {
			t.Fatal("neither a kernel nor an error")
		}
	})
}

func FuzzVersions(f *testing.F) {
	f.Add("123~rc1-1", "123a-1")
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := compareVersions(a, b), compareVersions(b, a)
		if (x < 0) != (y > 0) || (x == 0) != (y == 0) {
			t.Fatal(fmt.Sprint("not the same both ways: ", x, y))
		}
	})
}
