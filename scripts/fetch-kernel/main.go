// Command fetch-kernel puts Debian's cloud kernels into the user's cache, without root, and prints one line about each:
//
//	fetch-kernel [-print] SERIES...
//
// A series is for example 6.1, or "default" for the one that Debian's release gives to clouds. With -print it prints the
// path of each kernel's bzImage on standard output instead.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"vmm/kernel"
)

func main() {
	printPath := flag.Bool("print", false, "print the path of each kernel's bzImage on standard output")
	flag.Parse()
	if err := fetch(flag.Args(), *printPath); err != nil {
		fmt.Fprintf(os.Stderr, "fetch-kernel: %v\n", err)
		os.Exit(1)
	}
}

func fetch(series []string, printPath bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	for _, s := range series {
		k, err := kernel.Cloud(ctx, s)
		if err != nil {
			return err
		}
		did := "found in the cache"
		if k.Fetched {
			did = "fetched"
		}
		if printPath {
			fmt.Println(k.Image)
		}
		if k.Fetched || !printPath {
			fmt.Fprintf(os.Stderr, "kernel %s: %s: %s\n", k.Release, did, k.Image)
		}
	}
	return nil
}
