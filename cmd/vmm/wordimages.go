package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vmm/container/oci"
	"vmm/kernel"
)

// interruptible returns a context that ends with the signals that ask a program to end.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

func pullWord() *word {
	return &word{
		name: "pull", operands: "IMAGE", short: "Get an image from its registry.", least: 1, most: 1,
		run: func(p *process, w *parsedWord) (int, error) {
			s, err := openImages()
			if err != nil {
				return 0, err
			}
			ctx, stop := interruptible()
			defer stop()
			img, err := p.pull(ctx, s, w.operands[0])
			if err != nil {
				return 0, err
			}
			_, err = fmt.Fprintln(p.stdout, img.ID)
			return statusOK, err
		},
	}
}

// pull gets an image and makes its root file system, and shows how far it is.
func (p *process) pull(ctx context.Context, s *oci.Store, ref string) (*oci.Image, error) {
	bar := newPullBar(p.stderr, ref)
	img, err := s.Pull(ctx, ref, bar.progress)
	if err == nil {
		bar.say("unpacking")
		_, err = s.Rootfs(ctx, img)
	}
	bar.end()
	return img, err
}

// pullBar is a line on the terminal about a transfer. Where nobody sees it, it is nothing.
type pullBar struct {
	w    io.Writer // nil for none
	name string

	mu    sync.Mutex // guards what follows
	done  map[string]int64
	total map[string]int64
	drawn time.Time
}

func newPullBar(w io.Writer, name string) *pullBar {
	b := &pullBar{name: name, done: map[string]int64{}, total: map[string]int64{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		b.w = w
		b.say("connecting")
	} else {
		fmt.Fprintf(w, "vmm: pulling %s\n", name)
	}
	return b
}

const (
	barWidth    = 30 // characters
	barInterval = 100 * time.Millisecond
)

func (b *pullBar) progress(digest string, done, total int64) {
	b.mu.Lock()
	b.done[digest], b.total[digest] = done, total
	due := time.Since(b.drawn) >= barInterval
	if due {
		b.drawn = time.Now()
	}
	var sum, of int64
	for d := range b.done {
		sum, of = sum+b.done[d], of+b.total[d]
	}
	layers := len(b.done)
	b.mu.Unlock()
	if due && of > 0 {
		n := int(sum * barWidth / of)
		b.say(fmt.Sprintf("[%s%s] %s of %s in %d layers", strings.Repeat("=", n), strings.Repeat(" ", barWidth-n), size(sum), size(of), layers))
	}
}

func (b *pullBar) say(what string) {
	if b.w != nil {
		fmt.Fprintf(b.w, "\r\x1b[Kpulling %s: %s", b.name, what)
	}
}

func (b *pullBar) end() {
	if b.w != nil {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// size is a number of bytes for people, as Docker prints it.
func size(n int64) string {
	f, unit := float64(n), 0
	for ; f >= 1000 && unit < 4; unit++ {
		f /= 1000
	}
	return fmt.Sprintf("%.3g%s", f, []string{"B", "kB", "MB", "GB", "TB"}[unit])
}

type loadOptions struct{ input string }

func loadWord() *word {
	return &word{
		name: "load", short: "Take the images of an archive (docker save, or an OCI image layout in a tar), of a folder with an OCI image layout, or of standard input.",
		flags: func(f *pflag.FlagSet) any {
			o := &loadOptions{}
			f.StringVarP(&o.input, "input", "i", "-", "the archive or folder, a `PATH`; - is standard input")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			s, err := openImages()
			if err != nil {
				return 0, err
			}
			ctx, stop := interruptible()
			defer stop()
			list, err := p.load(ctx, s, w.options.(*loadOptions).input)
			if err != nil {
				return 0, err
			}
			for _, img := range list {
				name := img.ID.String()
				if len(img.Names) > 0 {
					name = oci.ShortName(img.Names[0])
				}
				if _, err := fmt.Fprintf(p.stdout, "Loaded image: %s\n", name); err != nil {
					return 0, err
				}
			}
			return statusOK, nil
		},
	}
}

func (p *process) load(ctx context.Context, s *oci.Store, path string) ([]*oci.Image, error) {
	if path == "-" {
		if term.IsTerminal(int(p.stdin.Fd())) {
			return nil, errors.New("an archive on standard input, and that is a terminal (-i FILE names one)")
		}
		return s.LoadArchive(ctx, p.stdin)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return s.LoadLayout(ctx, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := s.LoadArchive(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

type imagesOptions struct{ quiet bool }

func imagesWord() *word {
	return &word{
		name: "images", short: "List the images that are here.",
		flags: func(f *pflag.FlagSet) any {
			o := &imagesOptions{}
			f.BoolVarP(&o.quiet, "quiet", "q", false, "IDs alone")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			s, err := openImages()
			if err != nil {
				return 0, err
			}
			list, err := s.List()
			if err != nil {
				return 0, err
			}
			t := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
			quiet := w.options.(*imagesOptions).quiet
			if !quiet {
				fmt.Fprintln(t, "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE")
			}
			for _, img := range list {
				names := img.Names
				if len(names) == 0 {
					names = []string{"<none>:<none>"}
				}
				for _, name := range names {
					if quiet {
						fmt.Fprintln(t, img.ID.Hex[:12])
						break
					}
					repository, tag := splitName(oci.ShortName(name))
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", repository, tag, img.ID.Hex[:12], ago(img.Config.Created.Time), size(img.Size))
				}
			}
			return statusOK, t.Flush()
		},
	}
}

// splitName splits a name into its repository, and its tag or that it has none but a digest.
func splitName(name string) (repository, tag string) {
	if repository, _, ok := strings.Cut(name, "@"); ok {
		return repository, "<none>"
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, "<none>"
}

// ago is how long ago a time was, roughly.
func ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	return roughly(time.Since(t)) + " ago"
}

func roughly(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {7 * 24 * time.Hour, "week"}, {24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int64(d / u.unit); n > 0 {
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "less than a second"
}

type rmiOptions struct{ force bool }

func rmiWord() *word {
	return &word{
		name: "rmi", operands: "IMAGE...", short: "Remove images: a name, or with its last name or by its ID the image.", least: 1, most: -1,
		flags: func(f *pflag.FlagSet) any {
			o := &rmiOptions{}
			f.BoolVarP(&o.force, "force", "f", false, "no error for an image that is not here")
			return o
		},
		run: func(p *process, w *parsedWord) (int, error) {
			s, err := openImages()
			if err != nil {
				return 0, err
			}
			containers, err := openContainers()
			if err != nil {
				return 0, err
			}
			var errs []error
			for _, ref := range w.operands {
				gone, err := s.Remove(ref, func(img *oci.Image) error {
					list, err := containers.List()
					if err != nil {
						return err
					}
					for _, c := range list {
						if c.Spec.ImageID == img.ID.String() {
							return fmt.Errorf("image %s: container %s is made of it (vmm rm %[2]s)", ref, c.Spec.Name)
						}
					}
					return nil
				})
				if missing := (*oci.NotFoundError)(nil); errors.As(err, &missing) && w.options.(*rmiOptions).force {
					continue
				}
				errs = append(errs, err)
				for _, name := range gone {
					word := "Untagged: "
					if strings.HasPrefix(name, "sha256:") {
						word = "Deleted: "
					}
					fmt.Fprintln(p.stdout, word+oci.ShortName(name))
				}
			}
			return statusOK, errors.Join(errs...)
		},
	}
}

func kernelWord() *word {
	return &word{
		name: "kernel", operands: "fetch [SERIES] | list", short: "The kernels of containers' machines: fetch Debian's cloud kernel (of a series, say 6.12), or list what is here.", least: 1, most: 2,
		run: func(p *process, w *parsedWord) (int, error) {
			switch {
			case w.operands[0] == "list" && len(w.operands) == 1:
				list, err := kernel.Fetched()
				if err != nil {
					return 0, err
				}
				for _, k := range list {
					if _, err := fmt.Fprintf(p.stdout, "%s\t%s\n", k.Release, k.Image); err != nil {
						return 0, err
					}
				}
				return statusOK, nil
			case w.operands[0] == "fetch":
				series := kernel.Default
				if len(w.operands) > 1 {
					series = w.operands[1]
				}
				ctx, stop := interruptible()
				defer stop()
				k, err := kernel.Cloud(ctx, series)
				if err != nil {
					return 0, err
				}
				_, err = fmt.Fprintf(p.stdout, "%s\t%s\n", k.Release, k.Image)
				return statusOK, err
			}
			return 0, wordMistake{fmt.Errorf("kernel %s: not fetch or list", strings.Join(w.operands, " "))}
		},
	}
}
