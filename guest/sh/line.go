package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

var errInterrupted = errors.New("interrupted")

// lineReader is the terminal as a reader of edited lines. The terminal is in raw mode only while a line is typed.
type lineReader struct {
	editor     *term.Terminal
	incomplete func() bool // whether the next line goes on with a statement
	rest       []byte      // of a line that the reader's caller did not take whole

	interrupted bool // by Ctrl-C, in the line being typed
}

func newLineReader(incomplete func() bool) *lineReader {
	r := &lineReader{incomplete: incomplete}
	r.editor = term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{keys{r}, os.Stdout}, "")
	r.editor.AutoCompleteCallback = complete
	return r
}

// Read implements io.Reader; at Ctrl-C it returns errInterrupted, at Ctrl-D on an empty line io.EOF.
func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		line, err := r.readLine()
		if err != nil {
			return 0, err
		}
		r.rest = append([]byte(line), '\n')
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *lineReader) readLine() (string, error) {
	r.editor.SetPrompt(prompt(r.incomplete()))
	if w, h, err := term.GetSize(int(os.Stdout.Fd())); err == nil && w > 0 && h > 0 { // a serial line knows none
		_ = r.editor.SetSize(w, h)
	}
	restore, err := makeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return "", err
	}
	defer restore()
	r.interrupted = false
	line, err := r.editor.ReadLine()
	switch {
	case r.interrupted:
		return "", errInterrupted
	case errors.Is(err, io.EOF):
		_, _ = os.Stdout.WriteString("\r\n")
		return "", io.EOF
	}
	return line, err
}

func prompt(incomplete bool) string {
	if incomplete {
		return "> "
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "?"
	}
	return dir + " # "
}

// makeRaw leaves editing and echo to us. It keeps the output's processing, so that the kernel's messages don't run in
// stairs, and discards nothing that was sent ahead (TCSETS, not TCSETSF). What restore does is not checked: the
// terminal that could be set is there to be set back, or gone.
func makeRaw(fd int) (func(), error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *old
	raw.Iflag &^= unix.INLCR | unix.IGNCR | unix.IXON
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}

// keys is what the editor reads: one byte at a time, so that it holds nothing back when a line is whole. It makes
// Ctrl-C an empty line, which readLine knows by the flag; the editor itself would not tell it from the end of input.
type keys struct{ r *lineReader }

const ctrlC = 3

func (k keys) Read(p []byte) (int, error) {
	n, err := os.Stdin.Read(p[:1])
	if n == 1 && p[0] == ctrlC && len(p) >= 3 {
		k.r.interrupted = true
		return copy(p, "\x05\x15\r"), nil // to the end, all deleted, entered
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// complete is the editor's hook for each key: on a tab it completes the word before the cursor, a command's name in
// the first place and a file's name elsewhere, as far as all the candidates agree.
func complete(line string, pos int, key rune) (string, int, bool) {
	if key != '\t' {
		return "", 0, false
	}
	start := strings.LastIndexAny(line[:pos], " \t;|&<>=(") + 1
	word := line[start:pos]
	var candidates []string
	if strings.TrimSpace(line[:start]) == "" && !strings.Contains(word, "/") {
		for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
			candidates = append(candidates, names(dir, "", word)...)
		}
	} else {
		dir, base := filepath.Split(word)
		candidates = names(dir, dir, base)
	}
	if len(candidates) == 0 {
		return line, pos, true
	}
	common := commonPrefix(candidates)
	slices.Sort(candidates)
	if len(slices.Compact(candidates)) == 1 && !strings.HasSuffix(common, "/") {
		common += " "
	}
	return line[:start] + common + line[pos:], start + len(common), true
}

// names lists the entries of dir that begin with base, each with prefix before it.
func names(dir, prefix, base string) []string {
	if dir == "" {
		dir = "."
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var found []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), base) {
			continue
		}
		name := prefix + e.Name()
		if e.IsDir() {
			name += "/"
		}
		found = append(found, name)
	}
	return found
}

func commonPrefix(words []string) string {
	prefix := []byte(words[0])
	for _, w := range words[1:] {
		for !bytes.HasPrefix([]byte(w), prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	return string(prefix)
}
