#!/usr/bin/perl
# Shows one disk image to debugfs inside namespaces of its own, and answers what is asked about it on stdin. Perl, because
# Debian always has it (perl-base) and because the mounts have to be made from inside. All of it ends with this process,
# which ends when its descriptor 3 is let go of: nothing stays mounted, whatever happens to the one who asked.
#
#   look.pl outer UID NEXT...   (as root, in a mount namespace of its own) makes /dev/fuse usable, becomes UID and runs NEXT
#   look.pl inner NODE FILE...  (first process of user, mount, pid and net namespaces) shows FILE... as /disk/0, /disk/1, …
#                               and the image of the block node NODE (JSON), which is made of them, as /disk/image
#                               (of a VM that runs: /disk/0 is the socket of a view of its disk, /disk/1 an empty file)
#
# It says `ready SIZE`, or `fail WORDS`; then, for each request, `ok LENGTH FLAG` and that many bytes, or `error WORDS`:
#   read OFFSET LENGTH           bytes of the image
#   debugfs OFFSET MAX LENGTH    runs the LENGTH bytes that follow as debugfs commands on the filesystem at OFFSET, or on the
#                                `replayed` one; FLAG is 1 if more than MAX bytes came of it, and then it was cut there
#   replay SIZE MAX LENGTH       shows the block node in the LENGTH bytes that follow, which lies over a partition of SIZE bytes
#                                and writes at most MAX bytes to /disk/1, and replays the journal of the filesystem on it there
use strict;
use warnings;
use Fcntl qw(F_UNLCK F_WRLCK O_RDONLY O_CREAT O_WRONLY S_ISCHR);
use POSIX ();

use constant { MS_NOSUID => 2, MS_NODEV => 4, MS_BIND => 4096, MS_REC => 16384, MNT_DETACH => 2 };
use constant F_OFD_GETLK => 36;
use constant { AT_FDCWD => -100, CHARACTER_DEVICE => 0020600, FUSE_DEVICE => 10 << 8 | 229 };
# Where both stages mount a tmpfs in their own namespace: it exists everywhere, and no disk lies there.
use constant STAGE => '/sys';

my %numbers = (
    x86_64  => { mount => 165, umount2 => 166, pivot_root => 155, mknodat => 259 },
    aarch64 => { mount => 40,  umount2 => 39,  pivot_root => 41,  mknodat => 33 },
);
my $call = $numbers{ ( POSIX::uname() )[4] } or fail('this machine is neither x86_64 nor aarch64');

umask 0022;
$ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin';
my $stage = shift @ARGV // '';
if    ( $stage eq 'outer' ) { outer(@ARGV) }
elsif ( $stage eq 'inner' ) { inner(@ARGV) }
else                        { fail('no stage was named') }

sub fail {
    my ($words) = @_;
    $words =~ s/[^\x20-\x7e]+/ /g;
    syswrite STDOUT, 'fail ' . substr( $words, 0, 800 ) . "\n";
    exit 1;
}

# A system call takes its strings from variables only: it might write into them.
sub mount_at {
    my ( $source, $target, $type, $flags, $words ) = @_;
    syscall( $call->{mount}, $source, $target, $type, $flags, $words ) == 0 or fail("mount $target: $!");
}

sub outer {
    my ( $uid, @next ) = @_;
    mount_at( 'pratique', STAGE, 'tmpfs', MS_NOSUID, 'size=64k,mode=755' );
    mkdir STAGE . '/root' or fail("making a folder: $!");
    my @facts = stat '/dev/fuse';
    fail('fuse: /dev/fuse is not there') unless @facts && S_ISCHR( $facts[2] );
    # The device may be root's alone. A node of its own, which nobody else sees, lets this one user in.
    my $fuse = STAGE . '/fuse';
    syscall( $call->{mknodat}, AT_FDCWD, $fuse, CHARACTER_DEVICE, FUSE_DEVICE ) == 0 or fail("fuse: mknod: $!");
    chown $uid, $uid, $fuse or fail("fuse: chown: $!");
    my @drop = ( 'setpriv', "--reuid=$uid", "--regid=$uid", '--clear-groups', '--no-new-privs', '--inh-caps=-all' );
    exec { $drop[0] } @drop, '--bounding-set=-all', @next or fail("running setpriv: $!");
}

sub inner {
    my ( $node, @files ) = @_;
    my $root = -d STAGE . '/root' ? STAGE . '/root' : STAGE;
    my $fuse = -e STAGE . '/fuse' ? STAGE . '/fuse' : '/dev/fuse';
    sysopen( my $device, $fuse, O_RDONLY ) or fail("fuse: opening $fuse: $!");
    close $device;
    my $base = $root;
    mount_at( 'pratique', $base, 'tmpfs', MS_NOSUID | MS_NODEV, 'size=2m,mode=755' );
    mkdir "$base/$_" or fail("making $_: $!") for qw(dev disk old usr);
    mount_at( '/usr', "$base/usr", '', MS_BIND | MS_REC, '' );
    show_system_folder( $base, $_ ) for grep { -e "/$_" } qw(bin sbin lib lib64);
    show_file( $base, '/dev/null', 'dev/null' );
    show_file( $base, $fuse,       'dev/fuse' );
    show_file( $base, $files[$_],  "disk/$_" ) for 0 .. $#files;
    make_file("$base/disk/image");
    chdir $base or fail("chdir: $!");
    my ( $new, $old ) = ( '.', 'old' );
    syscall( $call->{pivot_root}, $new, $old ) == 0 or fail("pivot_root: $!");
    chdir '/' or fail("chdir: $!");
    syscall( $call->{umount2}, $old, MNT_DETACH ) == 0 or fail("umount: $!");
    refuse_written('/disk/0') unless -S '/disk/0';
    watch_over( sub { show_image( $node, 'image', 'off' ); serve() } );
}

# Does the work in a child. This process, whose end is everybody's end here, never touches the image: whoever has a file of an
# image open that no longer answers cannot even exit. It ends with the work, or when the one who asked lets go of descriptor 3.
sub watch_over {
    my ($work) = @_;
    open( my $lifeline, '<&=', 3 ) or fail("descriptor 3: $!");
    pipe( my $working, my $worker ) or fail("pipe: $!");
    my $pid = fork // fail("fork: $!");
    if ( $pid == 0 ) {
        close $_ for $lifeline, $working;
        $work->();
        exit 0;
    }
    close $_ for $worker, *STDIN, *STDOUT;
    my $wanted = '';
    vec( $wanted, fileno($_), 1 ) = 1 for $lifeline, $working;
    1 while select( my $ready = $wanted, undef, undef, undef ) < 0;
    exit 0;
}

# A system whose /bin is a link into /usr needs the link only.
sub show_system_folder {
    my ( $base, $name ) = @_;
    if ( defined( my $target = readlink "/$name" ) ) { symlink $target, "$base/$name" or fail("linking $name: $!"); return }
    mkdir "$base/$name" or fail("making $name: $!");
    mount_at( "/$name", "$base/$name", '', MS_BIND | MS_REC, '' );
}

sub make_file {
    my ($path) = @_;
    sysopen( my $file, $path, O_CREAT | O_WRONLY, 0600 ) or fail("making $path: $!");
    close $file;
}

sub show_file {
    my ( $base, $source, $name ) = @_;
    make_file("$base/$name");
    my ( $target, $no_type, $no_words ) = ( "$base/$name", '', '' );
    syscall( $call->{mount}, $source, $target, $no_type, MS_BIND, $no_words ) == 0 or fail("reach $source: $!");
}

# Every QEMU that may write an image holds a lock on byte 101 of it (block/file-posix.c). Ours only reads and would not mind.
sub refuse_written {
    my ($path) = @_;
    sysopen( my $file, $path, O_RDONLY ) or fail("image: opening it: $!");
    my $lock = pack( 's s x4 q q i x4', F_WRLCK, 0, 101, 1, 0 );
    fcntl( $file, F_OFD_GETLK, $lock ) or fail("asking for locks: $!");
    fail('locked') unless ( unpack 's', $lock )[0] == F_UNLCK;
}

sub show_image {
    my ( $node, $name, $writable, @bounds ) = @_;
    my $export = "type=fuse,id=$name,node-name=$name,mountpoint=/disk/$name,writable=$writable";
    my $pid = fork // fail("fork: $!");
    if ( $pid == 0 ) {
        redirect( '/disk/words', 2 );
        my @command = ( @bounds, 'qemu-storage-daemon', '--daemonize', '--blockdev', $node, '--export', $export );
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    return if $? == 0;
    fail('qemu-storage-daemon is not installed') if $? >> 8 == 127;
    fail( 'image: ' . words_of('/disk/words') );
}

# A journal holds what the filesystem does not have in its place yet. What replaying it writes goes to a file of its own.
sub replay {
    my ( $size, $max, $length ) = @_;
    my $node = bytes_of_stdin($length);
    run_quietly( 'qemu-img', 'create', '-q', '-f', 'qcow2', '/disk/1', $size ) == 0
      or return say_all( 'error making room for a journal: ' . words_on_one_line() . "\n" );
    make_file('/disk/replayed');
    show_image( $node, 'replayed', 'on', 'prlimit', "--fsize=$max" );
    my $code = run_quietly( 'e2fsck', '-y', '-E', 'journal_only', '/disk/replayed' );
    return say_all("error e2fsck is not installed\n") if $code == 127;
    # 1: it did what there was to do (e2fsck(8)).
    return say_all( "error journal: e2fsck ended with $code: " . words_on_one_line() . "\n" ) if $code > 1;
    answer( '', 0 );
}

# Its exit code; what it says is in /disk/words.
sub run_quietly {
    my @command = @_;
    my $pid = fork // return 126;
    if ( $pid == 0 ) {
        redirect( '/disk/words', 2 );
        redirect( '/dev/null',   1 );
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    waitpid $pid, 0;
    return $? & 127 ? 128 + ( $? & 127 ) : $? >> 8;
}

sub words_on_one_line {
    my $words = words_of('/disk/words');
    $words =~ s/[^\x20-\x7e]+/ /g;
    $words =~ s/^e2fsck [^)]*\) //;
    return substr( $words, 0, 400 );
}

sub bytes_of_stdin {
    my ($length) = @_;
    my $bytes = '';
    while ( length $bytes < $length ) { sysread( STDIN, $bytes, $length - length $bytes, length $bytes ) or exit 0 }
    return $bytes;
}

sub redirect {
    my ( $path, $fd ) = @_;
    my $target = POSIX::open( $path, &POSIX::O_WRONLY | &POSIX::O_CREAT | &POSIX::O_TRUNC, 0600 ) // POSIX::_exit(126);
    POSIX::dup2( $target, $fd ) // POSIX::_exit(126);
}

sub words_of {
    my ($path) = @_;
    open( my $file, '<', $path ) or return 'no reason was given';
    read( $file, my $words, 600 );
    return $words // '';
}

sub serve {
    sysopen( my $image, '/disk/image', O_RDONLY ) or fail("opening the image: $!");
    my $size = ( stat $image )[7];
    say_all("ready $size\n");
    while ( defined( my $line = next_line() ) ) {
        if    ( $line =~ /^read (\d{1,16}) (\d{1,8})$/ )                { read_range( $image, $1, $2 ) }
        elsif ( $line =~ /^debugfs (\d{1,16}) (\d{1,9}) (\d{1,7})$/ ) { run_debugfs( "/disk/image?offset=$1", $2, $3 ) }
        elsif ( $line =~ /^debugfs replayed (\d{1,9}) (\d{1,7})$/ )   { run_debugfs( '/disk/replayed', $1, $2 ) }
        elsif ( $line =~ /^replay (\d{1,16}) (\d{1,10}) (\d{1,5})$/ ){ replay( $1, $2, $3 ) }
        else                                                          { exit 1 }
    }
    exit 0;
}

sub next_line {
    my $line = '';
    while ( sysread STDIN, my $byte, 1 ) {
        return $line if $byte eq "\n";
        $line .= $byte;
        return if length $line > 200;
    }
    return;
}

sub say_all {
    my ($text) = @_;
    my $done = 0;
    while ( $done < length $text ) { $done += syswrite( STDOUT, $text, length($text) - $done, $done ) // exit 1 }
}

sub answer {
    my ( $bytes, $flag ) = @_;
    say_all( 'ok ' . length($bytes) . " $flag\n" );
    say_all($bytes);
}

sub read_range {
    my ( $image, $offset, $length ) = @_;
    my $bytes = '';
    sysseek( $image, $offset, 0 ) // return say_all("error seeking: $!\n");
    while ( length $bytes < $length ) {
        my $count = sysread( $image, $bytes, $length - length $bytes, length $bytes ) // return say_all("error reading: $!\n");
        last if $count == 0;
    }
    answer( $bytes, 0 );
}

sub run_debugfs {
    my ( $filesystem, $max, $length ) = @_;
    my $commands = bytes_of_stdin($length);
    open( my $script, '>', '/disk/commands' ) or return say_all("error writing: $!\n");
    print {$script} $commands;
    close $script or return say_all("error writing: $!\n");
    # -c: neither bitmaps nor group descriptors need to be in order for what we read.
    my $pid = open( my $output, '-|' ) // return say_all("error fork: $!\n");
    if ( $pid == 0 ) {
        redirect( '/dev/null', 2 );
        my @command = ( 'debugfs', '-c', '-f', '/disk/commands', $filesystem );
        exec { $command[0] } @command or POSIX::_exit(127);
    }
    my $bytes = collect( $output, $max );
    kill 'KILL', $pid if length $bytes > $max;
    close $output;
    return say_all("error debugfs is not installed\n") if $? >> 8 == 127;
    return say_all( 'error debugfs was ended by signal ' . ( $? & 127 ) . "\n" ) if ( $? & 127 ) && length $bytes <= $max;
    answer( substr( $bytes, 0, $max ), length $bytes > $max ? 1 : 0 );
}

# Until it ends or has said too much. Nobody writes to stdin meanwhile: it becomes readable only when whoever asked is gone.
sub collect {
    my ( $output, $max ) = @_;
    my $bytes = '';
    for ( ; ; ) {
        my $wanted = '';
        vec( $wanted, fileno($_), 1 ) = 1 for $output, *STDIN;
        select( my $ready = $wanted, undef, undef, undef );
        exit 0 if vec( $ready, fileno(STDIN), 1 );
        my $count = sysread( $output, $bytes, 65536, length $bytes ) // return $bytes;
        return $bytes if $count == 0 || length $bytes > $max;
    }
}
