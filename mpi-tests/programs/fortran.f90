!//# Level: normal
! Fortran, as solvers are written in it: blocks of a matrix as derived types, collectives in place, persistent halo exchange,
! file output through a unit that stays open.
!
!     fortran [ROUNDS]      default 0: until $SW_STOP appears
program fortran
  use mpi
  implicit none
  integer, parameter :: n = 64
  integer :: ierr, rank, ranks, up, down, column, round, limit, i, j, requests(4), states(MPI_STATUS_SIZE, 4), on
  double precision :: field(0:n + 1, 0:n + 1), sums(n), expected
  character(len=256) :: argument, stop_file, log_name
  logical :: there

  call MPI_Init(ierr)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, ierr)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks, ierr)
  limit = 0
  if (command_argument_count() > 0) then
    call get_command_argument(1, argument)
    read (argument, *) limit
  end if
  call get_environment_variable('SW_STOP', stop_file)
  up = mod(rank + 1, ranks)
  down = mod(rank + ranks - 1, ranks)
  ! A row of a column-major matrix: every (n + 2)nd element.
  call MPI_Type_vector(n, 1, n + 2, MPI_DOUBLE_PRECISION, column, ierr)
  call MPI_Type_commit(column, ierr)
  call MPI_Send_init(field(1, 1), 1, column, down, 1, MPI_COMM_WORLD, requests(1), ierr)
  call MPI_Send_init(field(n, 1), 1, column, up, 2, MPI_COMM_WORLD, requests(2), ierr)
  call MPI_Recv_init(field(n + 1, 1), 1, column, up, 1, MPI_COMM_WORLD, requests(3), ierr)
  call MPI_Recv_init(field(0, 1), 1, column, down, 2, MPI_COMM_WORLD, requests(4), ierr)
  write (log_name, '(a, i0)') 'log.', rank
  open (unit=20, file=log_name, action='write', status='replace')
  if (rank == 0) print '(a)', 'ready'
  flush (6)
  round = 0
  on = 1
  do while (on == 1)
    round = round + 1
    do j = 1, n
      do i = 1, n
        field(i, j) = round * 1d4 + rank * 1d2 + i + j / 1d3
      end do
    end do
    call MPI_Startall(4, requests, ierr)
    sums = field(1:n, n / 2)
    call MPI_Allreduce(MPI_IN_PLACE, sums, n, MPI_DOUBLE_PRECISION, MPI_SUM, MPI_COMM_WORLD, ierr)
    do i = 1, n
      expected = ranks * (round * 1d4 + i + (n / 2) / 1d3) + 1d2 * (ranks * (ranks - 1) / 2)
      if (abs(sums(i) - expected) > 1d-6 * expected) call wrong('sum')
    end do
    call MPI_Waitall(4, requests, states, ierr)
    do j = 1, n
      if (abs(field(n + 1, j) - (round * 1d4 + up * 1d2 + 1 + j / 1d3)) > 1d-9) call wrong('halo above')
      if (abs(field(0, j) - (round * 1d4 + down * 1d2 + n + j / 1d3)) > 1d-9) call wrong('halo below')
    end do
    write (20, '(i0)') round
    if (rank == 0) then
      print '(a, i0)', 'beat ', round
      flush (6)
      inquire (file=trim(stop_file), exist=there)
      if ((there .and. len_trim(stop_file) > 0) .or. (limit > 0 .and. round >= limit)) on = 0
    end if
    call MPI_Bcast(on, 1, MPI_INTEGER, 0, MPI_COMM_WORLD, ierr)
  end do
  ! Each round has left its line once.
  close (20)
  open (unit=21, file=log_name, action='read', status='old')
  do i = 1, round
    read (21, *, iostat=ierr) j
    if (ierr /= 0 .or. j /= i) call wrong('log')
  end do
  read (21, *, iostat=ierr) j
  if (ierr == 0 .and. j <= round) call wrong('log: a line twice')
  close (21)
  call MPI_Barrier(MPI_COMM_WORLD, ierr)
  if (rank == 0) print '(a)', 'PASS'
  call MPI_Finalize(ierr)

contains
  subroutine wrong(what)
    character(len=*), intent(in) :: what
    write (0, '(a, i0, a, a, a, i0)') 'FAIL rank ', rank, ': ', what, ' in round ', round
    call MPI_Abort(MPI_COMM_WORLD, 1, ierr)
  end subroutine
end program
